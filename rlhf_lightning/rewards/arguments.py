"""The arguments of a reward function that are made of completions, by the names of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_lightning.models.conversation import Message, as_rendered
from rlhf_lightning.types import Completions


def token_ids(completions: Completions) -> list[list[int]]:
    """Return the generated ids of each response, the stop token included."""
    width = completions.prompt_mask.shape[1]
    tokens, mask = completions.tokens[:, width:].cpu(), completions.mask.cpu()
    return [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]


def messages(completions: Completions) -> list[list[Message]]:
    """Return each prompt's messages with the response as the assistant's; text is one message of the user."""
    prompts = completions.columns.get("prompt", completions.prompts)
    return [
        [*_as_messages(prompt), {"role": "assistant", "content": response}]
        for prompt, response in zip(prompts, completions.responses, strict=True)
    ]


def _as_messages(prompt: Any) -> list[Message]:
    prompt = as_rendered(prompt)
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(each) for each in prompt]


ALWAYS: dict[str, Callable[[Completions], list[Any]]] = {
    "prompts": lambda completions: list(completions.prompts),
    "responses": lambda completions: list(completions.responses),
}
"""Arguments that also a function gets which takes any keyword."""
BY_NAME: dict[str, Callable[[Completions], list[Any]]] = {
    "token_ids": token_ids,
    "messages": messages,
    "steps": lambda completions: [list(row) for row in completions.steps or []],
    "truncated": lambda completions: completions.truncated.tolist(),
    "raw_responses": lambda completions: completions.texts(stop_token=True),
    "plain_responses": lambda completions: completions.texts(skip_special_tokens=True, strip=True),
}
"""Arguments that a function gets which names them, made only then."""

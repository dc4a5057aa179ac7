"""Numbers of single tokens: log-probabilities under policy and reference, values of the critic."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.collector import ReferenceLogprobs
from rlhf_lightning.types import Completions

TokenTable = list[dict[str, Any]]
"""One dictionary per token of a response: `token` (its text), `special`, `logprob`, and perhaps `reference_logprob`,
`log_ratio` (policy minus reference, nats) and `value`."""


def token_tables(
    completions: Completions, policy: Policy, reference: ReferenceLogprobs | None, encoder: Encoder
) -> list[TokenTable]:
    """Return the table of every completion, over the tokens that the policy generated."""
    output = policy(completions)
    columns: dict[str, Tensor] = {"logprob": output.logprobs}
    if reference is not None:
        rows = (completions.tokens, completions.prompt_mask, completions.mask)
        columns["reference_logprob"] = reference.logprobs(*rows, policy.temperature)
        columns["log_ratio"] = output.logprobs - columns["reference_logprob"]
    if output.values is not None:
        columns["value"] = output.values
    generated = completions.tokens[:, completions.prompt_mask.shape[1] :]
    tables = []
    for row, mask in enumerate(completions.mask):
        ids = generated[row, mask].tolist()
        numbers = {name: values[row, mask].tolist() for name, values in columns.items()}
        named = ({name: values[place] for name, values in numbers.items()} for place in range(len(ids)))
        tables.append(
            [{**text, **number} for text, number in zip(token_texts(encoder.tokenizer, ids), named, strict=True)]
        )
    return tables


def token_texts(tokenizer: Any, ids: list[int]) -> list[dict[str, Any]]:
    """Split the text of token ids by token; the texts that are not special, joined, are the text of all ids.

    A character of several tokens is the text of its last one.

    Returns:
        Per token `token` and `special`.
    """
    special, texts, ordinary, before = set(tokenizer.all_special_ids), [], [], ""
    for token in ids:
        if token in special:
            texts.append({"token": tokenizer.decode([token]), "special": True})
            continue
        ordinary.append(token)
        after = tokenizer.decode(ordinary).rstrip("\ufffd")
        texts.append({"token": after[len(before) :], "special": False})
        before = after
    return texts

"""From rows of a data set to token ids: chat templates, stop tokens, lengths, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Rows

Text = str | list[dict[str, str]]
"""Plain text, or messages with `role` and `content`."""


@dataclass
class Encoder:
    """A tokenizer and the limits of a run; counts what it cut."""

    tokenizer: Any
    stop_tokens: list[int]
    """Ids that end a response; the first is appended to recorded ones that end with none."""
    context: int | None = None
    """Positions that the model has; None for no limit."""
    max_prompt_length: int | None = None
    """Longer prompts lose their beginning; None refuses those that leave no room."""
    truncated_counts: dict[str, int] = field(default_factory=dict)
    """How many prompts and responses were shortened."""

    def prompt(self, text: Text) -> list[int]:
        """Token ids of a prompt, at least one; messages go through the chat template, up to where the assistant answers."""
        if isinstance(text, str):
            ids = list(self.tokenizer(text, add_special_tokens=True)["input_ids"])
            ids = (
                ids[:-1]
                if len(ids) > 1 and ids[-1] in self.stop_tokens and ids[-1] == self.tokenizer.eos_token_id
                else ids
            )
        else:
            ids = list(
                self.tokenizer(self._template(text, add_generation_prompt=True), add_special_tokens=False)["input_ids"]
            )
        if self.max_prompt_length is not None and len(ids) > self.max_prompt_length:
            self._count("prompts")
            ids = ids[-self.max_prompt_length :]
        return ids or [self._first]

    def response(self, prompt: Text, response: Text) -> list[int]:
        """Token ids of a recorded response, with a stop token at its end; after messages it is an assistant's turn."""
        if isinstance(prompt, str):
            text = response if isinstance(response, str) else "".join(turn["content"] for turn in response)
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            turns = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
            ids = self._after(self._template([*prompt, *turns]), self._template(prompt, add_generation_prompt=True))
        ids = self._without_tail(ids)
        return ids if ids and ids[-1] in self.stop_tokens else [*ids, self.stop_tokens[0]]

    def _after(self, full: str, start: str) -> list[int]:
        """Tokens of what a template adds to a prompt, cut where the text is cut: tokens never reach across, as in generation."""
        if not full.startswith(start):
            raise UserError(
                "the tokenizer's chat template does not continue a prompt: the text of prompt and answer together does not "
                "start with that of the prompt; give another with chat_template beside the model's name"
            )
        return list(self.tokenizer(full[len(start) :], add_special_tokens=False)["input_ids"])

    def _without_tail(self, ids: list[int]) -> list[int]:
        """Templates write a newline after the stop token, Phi-3's another stop token after that: the first of them is the end."""
        last = next((i for i in range(len(ids) - 1, max(len(ids) - 4, -1), -1) if ids[i] in self.stop_tokens), len(ids))
        for index in range(last - 1, -1, -1) if last < len(ids) else ():
            if ids[index] in self.stop_tokens:
                last = index
            elif self.tokenizer.decode(ids[index]).strip():
                break
        return ids[: last + 1]

    def _template(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the data is conversational and the tokenizer {self.tokenizer.name_or_path!r} has no chat template; "
                "set chat_template beside the model's name (a path, a template, or one of: dialogue, chatml)"
            )
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TemplateError as error:
            said = f"{messages[0]['role']}: {messages[0]['content']:.60}"
            raise UserError(
                f"the chat template cannot write the conversation that begins with {said!r}: {error}; change the row, or give "
                "another template with chat_template beside the model's name"
            ) from error

    def pair(self, prompt: list[int], response: list[int], max_length: int | None) -> tuple[list[int], list[int]]:
        """Both, cut to `max_length` tokens together: the beginning of the prompt goes first, then the end of the response.

        Raises:
            UserError: that is not room for a token of each.
        """
        limit = min(x for x in (max_length, self.context, 2**31) if x is not None)
        if limit < 2:
            raise UserError(
                f"max_length is {limit}; it must be at least 2, for a token of the prompt and one of the response"
            )
        if len(prompt) + len(response) <= limit:
            return prompt, response
        self._count("pairs of prompt and response")
        kept = max(1, limit - len(response))
        return prompt[-kept:], response[: limit - kept]

    def room(self, max_new_tokens: int) -> int | None:
        """Tokens that a prompt may have beside a response; None for any number.

        Raises:
            UserError: none.
        """
        if self.context is None or self.context > max_new_tokens:
            return self.context and self.context - max_new_tokens
        raise UserError(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt in the model's context of {self.context}; lower it"
        )

    def check_prompts(self, rows: Sequence[dict[str, Any]], max_new_tokens: int, where: str) -> None:
        """Refuse rows whose prompts leave no room for a response; see `check_lengths`."""
        if self.room(max_new_tokens) is not None:
            self.check_lengths(rows, [len(self.prompt(row["prompt"])) for row in rows], max_new_tokens, where)
        self.truncated_counts.clear()

    def check_lengths(
        self, rows: Sequence[dict[str, Any]], lengths: list[int], max_new_tokens: int, where: str
    ) -> None:
        """Refuse rows whose prompts, of `lengths` tokens, leave no room for a response.

        Raises:
            UserError: naming the first such row and how many there are, or there is no room for any prompt.
        """
        limit = self.room(max_new_tokens)
        long = [row for row, length in enumerate(lengths) if limit is not None and length > limit]
        if long:
            place = getattr(rows[long[0]], "place", "") or f"row {long[0]} ({rows[long[0]]['prompt']!r:.40}…)"
            raise UserError(
                f"{where}: prompt of {place} has {lengths[long[0]]} tokens, and the model's context of {self.context} "
                f"leaves {limit} beside max_new_tokens {max_new_tokens} ({len(long)} such rows); set max_prompt_length: "
                f"{limit} to cut their beginning, or lower max_new_tokens"
            )

    def decode(self, tokens: Tensor, mask: Tensor, special: bool = False) -> list[str]:
        """B strings of the tokens under the mask."""
        rows = zip(tokens.cpu(), mask.cpu(), strict=True)
        return [self.tokenizer.decode(row[kept], skip_special_tokens=not special).strip() for row, kept in rows]

    @property
    def _first(self) -> int:
        """What a text begins with that has no prompt."""
        begin = self.tokenizer.bos_token_id
        return int(self.tokenizer.pad_token_id if begin is None else begin)

    def _count(self, what: str) -> None:
        self.truncated_counts[what] = self.truncated_counts.get(what, 0) + 1


def left_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """int64 [N, P] and bool [N, P]: sequences that end in the last column."""
    width = max(1, max(map(len, sequences)))
    tokens = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        if len(ids):
            tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = torch.tensor(ids), True
    return tokens.to(device), mask.to(device)


def right_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """int64 [N, T] and bool [N, T]: sequences that begin in the first column."""
    tokens, mask = left_padded([list(ids)[::-1] for ids in sequences], pad, device)
    return tokens.flip(-1), mask.flip(-1)


def recorded_rows(
    prompts: list[list[int]], responses: list[list[int]], groups: list[int], stop_tokens: list[int], pad: int
) -> Rows:
    """`Rows` of B prompts with a recorded response each."""
    tokens, prompt_mask = left_padded(prompts, pad)
    generated, mask = right_padded(responses, pad)
    truncated = torch.tensor([not ids or ids[-1] not in stop_tokens for ids in responses])
    return Rows(torch.cat([tokens, generated], 1), prompt_mask, mask, torch.tensor(groups), truncated)

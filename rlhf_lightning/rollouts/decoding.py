"""From the token ids of generated responses to their texts."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from rlhf_lightning.generation.stop_strings import before_stop_string
from rlhf_lightning.types import Rows

CONTEXT_TOKENS = 8
"""Tokens of the prompt with which a response is decoded."""
SENTENCEPIECE_SPACE = "\u2581"


@dataclass(frozen=True)
class ResponseDecoder:
    """Decodes responses as they continue their prompts.

    Args:
        tokenizer: of the policy.
        stop_tokens: ids that end a response.
        stop_strings: texts that end a response.
    """

    tokenizer: Any
    stop_tokens: list[int]
    stop_strings: tuple[str, ...] = ()

    def __call__(
        self, rows: Rows, *, skip_special_tokens: bool = False, strip: bool = False, stop_token: bool = False
    ) -> list[str]:
        """Decode B responses.

        Args:
            rows: prompts with responses.
            skip_special_tokens: remove every special token of the tokenizer.
            strip: remove white space at both ends.
            stop_token: keep the special token or the stop string that ended the response.
        """
        host, texts = rows.to("cpu"), []
        for row in range(len(host)):
            prompt, ids = _prompt_and_response(host, row)
            if skip_special_tokens:
                ids = [token for token in ids if token not in self.special_tokens]
            elif not stop_token and ids and ids[-1] in self.special_tokens.intersection(self.stop_tokens):
                ids.pop()
            text = self.continuation(prompt, ids)
            text = text if stop_token else before_stop_string(text, self.stop_strings)
            texts.append(text.strip() if strip else text)
        return texts

    def columns(self, rows: Rows, row: int, lengths: list[int]) -> list[int]:
        """Find the tokens that complete the first `lengths` characters of a response.

        Returns:
            Their columns of `rows.mask`.
        """
        prompt, ids = _prompt_and_response(rows, row)
        text = self.continuation(prompt, ids)
        places = torch.nonzero(rows.mask[row]).flatten().tolist()

        def complete(count: int, length: int) -> bool:
            return self.continuation(prompt, ids[:count])[:length] == text[:length]

        counts = range(1, len(ids) + 1)
        found = [bisect_left(counts, True, key=partial(complete, length=length)) for length in lengths]
        return [places[min(index, len(places) - 1)] for index in found]

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """The special tokens of the vocabulary, also those that have no role such as end or padding."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        marked = {token for token, content in added.items() if getattr(content, "special", False)}
        return frozenset(marked.union(self.tokenizer.all_special_ids))

    def continuation(self, prompt: list[int], ids: list[int]) -> str:
        """Decode ids that follow a prompt.

        SentencePiece drops the space of a first word that is decoded alone. Word-level tokenizers put a space between any two
        words; the one between prompt and response is no part of the response.
        """
        if not ids:
            return ""
        alone, before = self._decode(ids), self._decode(prompt[-CONTEXT_TOKENS:])
        both = self._decode([*prompt[-CONTEXT_TOKENS:], *ids])
        if not both.startswith(before):
            return alone
        text = both[len(before) :]
        joined = text.startswith(" ") and not alone.startswith(" ")
        return text[1:] if joined and not self._begins_with_space(ids[0]) else text

    def _begins_with_space(self, token: int) -> bool:
        return str(self.tokenizer.convert_ids_to_tokens(token)).startswith(SENTENCEPIECE_SPACE)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _prompt_and_response(rows: Rows, row: int) -> tuple[list[int], list[int]]:
    width = rows.prompt_mask.shape[1]
    prompt, response = rows.tokens[row, :width], rows.tokens[row, width:]
    return prompt[rows.prompt_mask[row]].tolist(), response[rows.mask[row]].tolist()

"""Token ids of texts: special tokens once, and no space where a text follows another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.errors import UserError

ANCHORS = ("\n", ":", ">")
"""Texts that a tokenizer may keep apart from what follows."""
CACHED_TEXTS = 8


class TextIds:
    """Tokenizes texts, and keeps the ids of the last few, as a prompt is tokenized once for each of its responses.

    Args:
        tokenizer: of the model.
        stop_tokens: ids that end a response.
    """

    def __init__(self, tokenizer: Any, stop_tokens: list[int]) -> None:
        self.tokenizer, self.stop_tokens = tokenizer, stop_tokens
        self._recent: dict[tuple[str, bool], list[int]] = {}

    def ids(self, text: str, special: bool) -> list[int]:
        """Ids of a text; with `special` those that the tokenizer puts at its beginning, once, and none at its end."""
        key = (text, special)
        if key not in self._recent:
            if len(self._recent) >= CACHED_TEXTS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[key] = self._tokenize(text, special)
        return self._recent[key]

    def _tokenize(self, text: str, special: bool) -> list[int]:
        try:
            ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        except Exception as error:  # half of a surrogate pair, for one
            raise UserError(f"the tokenizer cannot read the text {text!r:.60}: {error}; fix the row") from error
        if special:
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            if len(ids) > 1 and ids[0] == ids[1] == begin is not None:
                ids = ids[1:]  # the text begins with it too
            if len(ids) > 1 and ids[-1] == end and end in self.stop_tokens:
                ids = ids[:-1]
        return ids

    def behind(self, text: str) -> list[int]:
        """Ids of a text that follows another one: without the space that some tokenizers put at a beginning."""
        for anchor in ANCHORS:
            alone, both = self._tokenize(anchor, False), self._tokenize(anchor + text, False)
            if both[: len(alone)] == alone:
                return both[len(alone) :]
        return self._tokenize(text, False)

    def without_tail(self, ids: list[int]) -> list[int]:
        """Templates write a newline after the stop token, Phi-3's another stop token after that: the first of them is the end."""
        last = next((i for i in range(len(ids) - 1, max(len(ids) - 4, -1), -1) if ids[i] in self.stop_tokens), len(ids))
        for index in range(last - 1, -1, -1) if last < len(ids) else ():
            if ids[index] in self.stop_tokens:
                last = index
            elif self.tokenizer.decode(ids[index]).strip():
                break
        return ids[: last + 1]


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the elements that both begin with.

    >>> common_length("abc", "abd")
    2
    """
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))

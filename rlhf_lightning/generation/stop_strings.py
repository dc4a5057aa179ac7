"""Find the token that completes a stop string in the text of a response."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_lightning.types import SamplingParams

EXTRA_TOKENS = 4
"""Tokens before a window of text: a character has up to four bytes, and a decoder may strip the space of a first token."""
REPLACEMENT = "\ufffd"
"""Decoded text of bytes that are no character. A window does not begin with them, as some decoders then lose the next ones."""


class StopStrings:
    """Tell at which token a response ends because its text contains a stop string.

    A response ends with the first token after which its decoded text contains one of the strings. The text is that of the
    response alone, special tokens included. It depends on no other row and on no state of the engine.

    Args:
        strings: each of them ends a response.
        decode: token ids of a response → its text, special tokens included.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self.strings, self.decode = tuple(strings), decode
        # each token with a text has a byte of it, so this many reach back before any string that the last token completes
        self.window = max(len(string.encode("utf-8", "surrogatepass")) for string in strings) + EXTRA_TOKENS
        self._texts: dict[int, str] = {}

    def completed_by_last(self, ids: list[int]) -> bool:
        """Tell whether the text of `ids` contains a stop string, where that of all ids but the last contains none.

        A window of text is decoded, and the whole text only where the window contains a stop string.
        """
        return self._contained(ids[self._window_start(ids) :]) and self._contained(ids)

    def _contained(self, ids: list[int]) -> bool:
        text = self.decode(ids)
        return any(string in text for string in self.strings)

    def _window_start(self, ids: list[int]) -> int:
        """Return where the window begins: it has `window` tokens with a text before the last one, or all there are."""
        count = 0
        for start in range(len(ids) - 2, -1, -1):
            text = self._text(ids[start])
            count += bool(text)  # an id that pads the vocabulary of the model has none
            if count >= self.window and REPLACEMENT not in text:
                return start
        return 0

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self.decode([token])
        return self._texts[token]


def stop_strings_of(params: SamplingParams) -> StopStrings | None:
    """Make the detector of a call's stop strings; None where it has none."""
    if not params.stop_strings:
        return None
    assert params.decode is not None, "stop strings need SamplingParams.decode"
    return StopStrings(params.stop_strings, params.decode)


def before_stop_string(text: str, strings: Sequence[str]) -> str:
    """Return the text before the first stop string.

    >>> before_stop_string("4\\nQ: what else?", ["Q:", "\\n"])
    '4'
    """
    return text[: min((place for string in strings if (place := text.find(string)) >= 0), default=len(text))]

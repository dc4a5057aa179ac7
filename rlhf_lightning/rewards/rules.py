"""Rule-based rewards: a pattern, a number after a marker, a length."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


class PatternReward(Reward):
    """Give one score to responses that match a regular expression, and another to the rest.

    Args:
        pattern: a Python regular expression; it may match anywhere in the response.
        matched: score of a response that matches.
        unmatched: score of a response that does not match.
    """

    def __init__(self, pattern: str, matched: float = 1.0, unmatched: float = 0.0) -> None:
        self.pattern, self.matched, self.unmatched = pattern, matched, unmatched
        self.best = max(matched, unmatched)

    def check(self) -> None:
        """Check that the expression compiles."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"PatternReward.pattern is {self.pattern!r}, which is no regular expression: {error}; fix it"
            ) from error

    def __call__(self, completions: Completions) -> Sequence[float]:
        """Return `matched` or `unmatched` for each response."""
        search = re.compile(self.pattern).search
        return [self.matched if search(response) else self.unmatched for response in completions.responses]


class NumberReward(Reward):
    """Give 1 to responses with the number that the data set expects, as in GSM8K (Cobbe et al. 2021).

    Args:
        marker: the text before the answer, in the response and in the column; the last one counts.
        column: the data set's column with the expected answer: a number, or a text with the marker.
        fallback_last: take the last number of a response without the marker.
        marker_reward: score of a response that has the marker and a wrong number.
        tolerance: largest difference between two numbers that count as equal.
    """

    best = 1.0

    def __init__(
        self,
        marker: str = "####",
        column: str = "answer",
        fallback_last: bool = False,
        marker_reward: float = 0.0,
        tolerance: float = 1e-6,
    ) -> None:
        self.marker, self.column, self.fallback_last = marker, column, fallback_last
        self.marker_reward, self.tolerance = marker_reward, tolerance

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Check that `column` is one of them."""
        if self.column not in columns:
            hint = nearest(self.column, columns)
            raise UserError(f"NumberReward.column is {self.column!r}, which is no column of the {where}; {hint}")

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the column of the true number."""
        return [self.column]

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """Return 1, `marker_reward` or 0 for each response; None where the column has no number.

        Raises:
            UserError: the data set has no such column.
        """
        self.check_columns(completions.columns, "data")
        pairs = zip(completions.responses, completions.columns[self.column], strict=True)
        return [self._score(response, expected) for response, expected in pairs]

    def _score(self, response: str, expected: object) -> float | None:
        target = self._answer(str(expected), fallback=True)
        if target is None:
            return None
        answer = self._answer(response, self.fallback_last)
        if answer is not None and abs(answer - target) <= self.tolerance:
            return 1.0
        return self.marker_reward if self.marker in response else 0.0

    def _answer(self, text: str, fallback: bool) -> float | None:
        """Return the first number after the last marker; without a marker the last number, if `fallback` is True."""
        _, marker, after = text.rpartition(self.marker)
        numbers = NUMBER.findall(after) if marker or fallback else []
        if not numbers:
            return None
        return float(numbers[0 if marker else -1].replace(",", "").replace("$", ""))


class LengthReward(Reward):
    """Give 0 up to a length, and subtract a penalty for every unit beyond it.

    Args:
        limit: longest length without a penalty.
        penalty: subtracted for each unit beyond the limit.
        unit: tokens of the policy, words or characters.
    """

    best = 0.0

    def __init__(
        self, limit: int, penalty: float = 0.01, unit: Literal["tokens", "words", "characters"] = "tokens"
    ) -> None:
        self.limit, self.penalty, self.unit = limit, penalty, unit

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """A length is made of no column."""
        return ()

    def __call__(self, completions: Completions) -> Sequence[float]:
        """Return the negative penalty of each response."""
        if self.unit == "tokens":
            lengths = completions.mask.sum(-1).tolist()
        elif self.unit == "words":
            lengths = [len(response.split()) for response in completions.responses]
        else:
            lengths = [len(response) for response in completions.responses]
        return [-self.penalty * max(0, length - self.limit) for length in lengths]

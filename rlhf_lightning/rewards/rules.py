"""Rewards by rule: a pattern, a number after a marker, a length."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


class PatternReward(Reward):
    """One score for responses in which a regular expression is found, another for the rest.

    Args:
        pattern: a Python regular expression, searched for anywhere.
        matched: score where it is found. unmatched: score where it is not.
    """

    def __init__(self, pattern: str, matched: float = 1.0, unmatched: float = 0.0) -> None:
        self.pattern, self.matched, self.unmatched = pattern, matched, unmatched
        self.best = max(matched, unmatched)

    def check(self) -> None:
        """The expression compiles."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(f"PatternReward.pattern {self.pattern!r} is no regular expression: {error}") from error

    def __call__(self, completions: Completions) -> Sequence[float]:
        """`matched` or `unmatched`."""
        search = re.compile(self.pattern).search
        return [self.matched if search(response) else self.unmatched for response in completions.responses]


class NumberReward(Reward):
    """1 where the response gives the number that the data set expects, as in GSM8K (Cobbe et al. 2021).

    Args:
        marker: what stands before the answer, in the response and in the column; the last one counts.
        column: the data set's column with the expected answer: a number, or a text with the marker.
        fallback_last: without the marker take the last number of the response.
        marker_reward: score of a response that has the marker and a wrong number.
        tolerance: by how much numbers may differ.
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
        """`column` is one of them."""
        if self.column not in columns:
            hint = nearest(self.column, columns)
            raise UserError(f"NumberReward.column {self.column!r} is no column of the {where}; {hint}")

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the column of the true number."""
        return [self.column]

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """1, `marker_reward` or 0; None where the data set names no number.

        Raises:
            UserError: the data set has no such column.
        """
        self.check_columns(completions.columns, "data")
        pairs = zip(completions.responses, completions.columns[self.column], strict=True)
        return [self._one(response, expected) for response, expected in pairs]

    def _one(self, response: str, expected: object) -> float | None:
        truth = self._after(str(expected), fallback=True)
        if truth is None:
            return None
        given = self._after(response, self.fallback_last)
        if given is not None and abs(given - truth) <= self.tolerance:
            return 1.0
        return self.marker_reward if self.marker in response else 0.0

    def _after(self, text: str, fallback: bool) -> float | None:
        """The first number after the last marker; the last number of all where there is no marker and `fallback` says so."""
        _, marker, after = text.rpartition(self.marker)
        found = NUMBER.findall(after) if marker or fallback else []
        if not found:
            return None
        return float(found[0 if marker else -1].replace(",", "").replace("$", ""))


class LengthReward(Reward):
    """0 up to a length, then a penalty for every unit beyond it.

    Args:
        limit: length that costs nothing.
        penalty: taken off per unit beyond.
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
        """Minus the penalty."""
        if self.unit == "tokens":
            lengths = completions.mask.sum(-1).tolist()
        elif self.unit == "words":
            lengths = [len(response.split()) for response in completions.responses]
        else:
            lengths = [len(response) for response in completions.responses]
        return [-self.penalty * max(0, length - self.limit) for length in lengths]

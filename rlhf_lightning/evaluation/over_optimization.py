"""Detect that a second judge falls while the training reward is above its start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from rlhf_lightning.errors import UserError


def paired_drop(best: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """Return the mean of best - now over the prompts that both scored, and its standard error.

    >>> paired_drop([1.0, 3.0], [0.0, 1.0])
    (1.5, 0.5)
    """
    known = [a - b for a, b in zip(best, now, strict=False) if a == a and b == b]
    if len(known) < 2:
        return (known[0] if known else 0.0), math.inf
    return fmean(known), stdev(known) / math.sqrt(len(known))


class Alarm:
    """Keeps the best validation of a judge, and counts the validations in a row that fell below it.

    Args:
        errors: standard errors of a fall that counts.
        validations: how many in a row raise the alarm.
    """

    def __init__(self, errors: float, validations: int) -> None:
        if validations < 1:
            raise UserError(f"validations is {validations}; it must be at least 1")
        self.errors, self.validations = errors, validations
        self.first_rewards: list[float] = []
        self.best: list[float] = []
        self.best_step = -1
        self.below = 0
        self.drop = 0.0

    @property
    def raised(self) -> bool:
        """Enough validations in a row were below the best."""
        return self.below >= self.validations

    def update(self, step: int, scores: Sequence[float], rewards: Sequence[float]) -> None:
        """Compare the judge with its best validation, and the training reward with its first one, prompt by prompt.

        Not with the reward at the judge's best: it varies from one validation to the next while it is far above its start.

        Args:
            step: of the validation.
            scores: of the judge, one per prompt.
            rewards: of training, one per prompt.
        """
        if len(self.first_rewards) < len(rewards):  # a sanity check has fewer prompts
            self.first_rewards = list(rewards)
        self.drop, error = paired_drop(self.best, scores)
        if not self.best or self.drop < 0 or len(self.best) < len(scores):
            self.best, self.best_step, self.below, self.drop = list(scores), step, 0, 0.0
            return
        loss, _ = paired_drop(self.first_rewards, rewards)
        falls = self.drop > self.errors * error and loss < 0
        self.below = self.below + 1 if falls else 0

    def state_dict(self) -> dict[str, Any]:
        """Return the first and the best validation, and the count."""
        return {name: getattr(self, name) for name in ("first_rewards", "best", "best_step", "below", "drop")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)

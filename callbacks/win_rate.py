"""The win rate of the present model against the one before training."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.evaluation import Evaluation, ValidationResults, win_rate
from rlhf_lightning.evaluation.base import Ask


class WinRate(Evaluation):
    """Logs `val/win_rate`: the fraction of held-out prompts whose reply scores higher than in the first validation.

    Args:
        score: the score to compare: `reward` for the training reward, `reward/<name>` for an evaluation reward.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: WinRate
              init_args: {score: reward/true}
    """

    def __init__(self, score: str = "reward", strict: bool = False) -> None:
        super().__init__(strict)
        self.score = score
        self.first: list[float] | None = None

    def evaluate(self, results: ValidationResults, ask: Ask) -> dict[str, float]:
        """Compare with the first validation on the prompts of both; a sanity check may have validated fewer."""
        scores = [sample.get(self.score, float("nan")) for sample in results.samples]
        self.first = self.first or scores
        count = min(len(scores), len(self.first))
        return {"win_rate": win_rate(scores[:count], self.first[:count])}

    def state_dict(self) -> dict[str, Any]:
        """Return the scores of the first validation."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of the first validation on resume."""
        self.first = state_dict["first"]

"""The win rate of the present model against the one before training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.evaluation import win_rate


class WinRate(Callback):
    """Logs `val/win_rate`: the fraction of held-out prompts whose reply scores higher than in the first validation.

    Args:
        score: the score to compare: `reward` for the training reward, `reward/<name>` for an evaluation reward.

    Example:
        trainer:
          callbacks:
            - class_path: WinRate
              init_args: {score: reward/true}
    """

    def __init__(self, score: str = "reward") -> None:
        self.score = score
        self.first: list[float] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the first validation on the prompts of both; a sanity check may have validated fewer."""
        samples: list[dict[str, Any]] = getattr(pl_module, "validation_samples", [])
        scores = [sample.get(self.score, float("nan")) for sample in samples]
        self.first = self.first or scores
        count = min(len(scores), len(self.first))
        for logger in trainer.loggers:
            logger.log_metrics({"val/win_rate": win_rate(scores[:count], self.first[:count])}, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores of the first validation."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of the first validation on resume."""
        self.first = state_dict["first"]

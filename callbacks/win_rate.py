"""How often a reply beats the one that the model wrote to the same prompt before it learned."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.evaluation import win_rate


class WinRate(Callback):
    """Logs `val/win_rate`: the share of held-out prompts whose reply now scores higher than the first one did.

    Args:
        score: which number of a sample decides: `reward` for the one that trains, `reward/<name>` for another.

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
        """Compare with the first validation, on the prompts that both measured: the first one may have been cut short."""
        samples: list[dict[str, Any]] = getattr(pl_module, "validation_samples", [])
        scores = [sample.get(self.score, float("nan")) for sample in samples]
        self.first = self.first or scores
        both = min(len(scores), len(self.first))
        for logger in trainer.loggers:
            logger.log_metrics({"val/win_rate": win_rate(scores[:both], self.first[:both])}, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The first scores."""
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them, for a run that goes on."""
        self.first = state_dict["first"]

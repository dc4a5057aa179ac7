"""The best model of a run, exported."""

from __future__ import annotations

from typing import Any, Literal

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.evaluation import Evaluation, EvaluationReport, ValidationResults
from rlhf_lightning.evaluation.base import Ask
from rlhf_lightning.training.lightning_compat import state_key


class KeepBest(Evaluation):
    """Exports the model whenever a validation metric is better than ever before in the run, in Hugging Face form.

    The folder is `best/` in the run's. It is replaced as a whole. `val/<monitor>/best` is the best value so far
    (`best` is the name of the folder).

    Args:
        monitor: metric of the stage, or of an evaluation before this one in `trainer.callbacks`; with or without `val/`.
        mode: whether a higher or a lower value is better.
        folder: name of the export's folder.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: KeepBest
              init_args: {monitor: val/reward/true}
    """

    def __init__(
        self,
        monitor: str = "reward/mean",
        mode: Literal["max", "min"] = "max",
        folder: str = "best",
        strict: bool = False,
    ) -> None:
        super().__init__(strict)
        self.monitor, self.mode, self.folder = monitor.removeprefix("val/"), mode, folder
        self.best: float | None = None
        self.step: int | None = None
        """Step of the best value."""

    @property
    def state_key(self) -> str:
        """Return the key of this callback in a checkpoint, which tells several of one class apart."""
        return state_key(self, monitor=self.monitor, mode=self.mode, folder=self.folder)

    def evaluate(self, results: ValidationResults, ask: Ask) -> EvaluationReport:
        """Export the model where the metric is better than ever; `test` exports nothing.

        Raises:
            UserError: there is no such metric.
        """
        if self.monitor not in results.metrics:
            raise UserError(f"no metric is called {self.monitor!r}; {nearest(self.monitor, results.metrics)}")
        value, sign = results.metrics[self.monitor], 1 if self.mode == "max" else -1
        if results.split == "test" or value != value:
            return EvaluationReport()
        better = self.best is None or sign * value > sign * self.best
        if better:
            self.best, self.step = value, results.step
        return EvaluationReport(
            {f"{self.monitor}/{self.folder}": float(self.best or 0.0)}, export=self.folder if better else None
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its step."""
        return {"best": self.best, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value on resume."""
        self.best, self.step = state_dict["best"], state_dict["step"]

"""Tables of responses: held-out ones, and those of training rollouts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.errors import printable_lines
from rlhf_lightning.evaluation import EvaluationReport, ValidationResults
from rlhf_lightning.evaluation.base import Ask, Evaluation
from rlhf_lightning.evaluation.rollout_rows import rollout_rows
from rlhf_lightning.evaluation.tables import log_tables
from rlhf_lightning.types import Batch


class SampleTable(Evaluation):
    """Shows responses to held-out prompts at every validation, and responses of training rollouts with their advantages.

    The tables are `tables/samples.jsonl` and `tables/rollouts.jsonl` in the run's folder; TensorBoard, W&B and MLflow get them as
    `val/samples` and `train/rollouts`. Rollouts are those of rank zero.

    Args:
        rows: responses per table.
        every_n_steps: optimiser steps between two tables of rollouts, at least; 0 for none.
        console: print the tables too.
        strict: stop the run where the evaluation fails.

    Example:
        trainer:
          callbacks:
            - class_path: SampleTable
              init_args: {rows: 8, every_n_steps: 50}
    """

    def __init__(self, rows: int = 8, every_n_steps: int = 50, console: bool = True, strict: bool = False) -> None:
        super().__init__(strict)
        self.rows, self.every_n_steps, self.console = rows, every_n_steps, console
        self.step: int | None = None
        """Step of the last table of rollouts."""

    def evaluate(self, results: ValidationResults, ask: Ask) -> EvaluationReport:
        """Return the first held-out samples as a table."""
        table = results.samples[: self.rows]
        self._print(f"{results.split}/samples at step {results.step}", table)
        return EvaluationReport(tables={"samples": table})

    def on_rollout_end(self, trainer: Trainer, pl_module: LightningModule, rollout: Batch) -> None:
        """Log the first responses of the rollout, where enough steps have passed."""
        step = trainer.global_step
        due = self.every_n_steps > 0 and (self.step is None or step - self.step >= self.every_n_steps)
        if not trainer.is_global_zero or not due:
            return
        self.step = step
        table = rollout_rows(pl_module, rollout, self.rows)
        log_tables(trainer, "train", {"rollouts": table})
        self._print(f"train/rollouts at step {step}", table)

    def _print(self, title: str, rows: Any) -> None:
        if not self.console or not rows:
            return
        columns = list(rows[0])
        table = Table(*columns, title=title, title_justify="left", show_lines=True)
        for row in rows:  # a Text shows markup as it is
            table.add_row(*(Text(printable_lines(_shown(row.get(column)))) for column in columns))
        Console(highlight=False, force_jupyter=False).print(table)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last table of rollouts."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the last table of rollouts."""
        self.step = state_dict["step"]


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)

"""`summary.json`, and the table of metrics before and after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_lightning.errors import printable_lines
from rlhf_lightning.run.metrics_csv import MetricsFile
from rlhf_lightning.training.lightning_compat import restore_callback_metrics

SHOWN_RESPONSES = 3


class Resume(Callback):
    """Resume `metrics.csv` at the step of the checkpoint, without a duplicate or a missing row, and what callbacks monitor."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the metrics row of the current step, which may still be incomplete."""
        rows = [logger.last for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        checkpoint["metrics_row"] = next(
            (dict(row) for row in rows if row and row["step"] == trainer.global_step), None
        )
        checkpoint["callback_metrics"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop the rows that the resumed run will repeat."""
        row, self.metrics = checkpoint.get("metrics_row"), checkpoint.get("callback_metrics", {})
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.state.fn == "fit":
                logger.drop_after(checkpoint["global_step"] - 1)
                if row:
                    logger.log_metrics({name: value for name, value in row.items() if name != "step"}, row["step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give callbacks the metrics of the last validation: EarlyStopping reads them at the end of the epoch."""
        restore_callback_metrics(trainer, self.metrics)
        self.metrics = {}


class Summary(Callback):
    """Keep the first and the last validation; write `summary.json`, print a table and three responses."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.first: list[dict[str, Any]] = []
        self.last: list[dict[str, Any]] = []
        self.step = 0
        """Step of the last validation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics and samples of this validation."""
        metrics, samples = measured(trainer, "val/"), list(getattr(pl_module, "validation_samples", []))
        metrics |= dict.fromkeys(getattr(pl_module, "unmeasured_metrics", ()), float("nan"))
        if not self.before:
            self.before, self.first = metrics, samples[:SHOWN_RESPONSES]
        self.after, self.last, self.step = metrics, samples[:SHOWN_RESPONSES], trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the summary."""
        if not trainer.is_global_zero or not self.after:
            return
        best = getattr(pl_module, "best", {})
        unmeasured = self.step == 0 < trainer.global_step
        after = {} if unmeasured else self.after
        summary = {
            name: {"before": _known(self.before.get(name)), "after": _known(after.get(name))}
            | ({"best": best[name]} if name in best else {})
            for name in self.after
        }
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        self._print(summary, [] if unmeasured else self.last)
        if self.step < trainer.global_step:
            print(f"the last validation was at step {self.step} of {trainer.global_step} (trainer.val_check_interval)")

    def _print(self, summary: dict[str, dict[str, Any]], responses: list[dict[str, Any]]) -> None:
        console = Console(highlight=False, force_jupyter=False)
        table = Table("held-out", "before", "after", "best", title="before and after", title_justify="left")
        for name, row in summary.items():
            table.add_row(name, *(_number(row.get(key)) for key in ("before", "after", "best")))
        console.print(table)
        for first, last in zip(self.first, responses, strict=False):
            console.print(f"[bold]{_text(_shortened(first['prompt']))}[/bold]")
            console.print(f"  before: {_text(first['response'])}\n  after:  {_text(last['response'])}")

    def state_dict(self) -> dict[str, Any]:
        """Return the first and the last validation; a resumed run may have no validation left."""
        return {name: getattr(self, name) for name in ("before", "first", "after", "last", "step")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the first and the last validation."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def measured(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Return the metrics of the validation (`val/`) or the test (`test/`) that has just ended."""
    return {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if name.startswith(prefix)}


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text(text: str) -> str:
    """Show text of a model or a data set as it is: no markup, and no control characters."""
    return escape(printable_lines(text))


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) < 200 else "…" + prompt[-200:]

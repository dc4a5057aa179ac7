"""Progress: a bar with the reward in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from rlhf_lightning.console import in_notebook

EVERY_SECONDS = 5.0


class _CountedBatches(ProgressBar):
    """Count the batches that will run: Lightning's bar ignores `max_steps` where `max_epochs` is set."""

    @property
    def total_train_batches(self) -> int | float:
        """Count the batches of this epoch up to `max_steps`."""
        trainer, of_epoch = self.trainer, self.trainer.num_training_batches
        if trainer.max_steps < 0:
            return of_epoch
        progress, accumulated = trainer.fit_loop.epoch_loop.batch_progress.current, trainer.accumulate_grad_batches
        done = progress.processed  # type: ignore[attr-defined]
        left = max(0, trainer.max_steps - trainer.global_step) * accumulated
        return min(of_epoch, done - done % accumulated + left)


class Bar(_CountedBatches, TQDMProgressBar):
    """Lightning's bar, for a terminal."""


class PlainProgress(_CountedBatches):
    """Print a line every few seconds: the batch, the metrics of the progress bar, the seconds since the start."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.started = self.printed_at = time.monotonic()
        self.enabled = True

    def disable(self) -> None:
        """Print nothing, on ranks other than the first."""
        self.enabled = False

    def enable(self) -> None:
        """Print lines."""
        self.enabled = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Announce the validation before the first step."""
        self._print_line("measuring held-out rows before the first step")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the metrics of the validation before the first step, which Lightning drops afterwards."""
        self._print("before the first step", trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Print a line if one is due."""
        total = self.total_train_batches
        done = int(kwargs.get("batch_idx", args[-1] if args else 0)) + 1
        if time.monotonic() - self.printed_at < self.every_seconds and done not in (1, total):
            return
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  " if (trainer.max_epochs or 1) > 1 else ""
        self._print(f"{epoch}batch {done}/{total}", trainer, pl_module)

    def _print(self, event: str, trainer: Trainer, module: LightningModule) -> None:
        self.printed_at = time.monotonic()
        shown = {n: v for n, v in self.get_metrics(trainer, module).items() if n != "v_num"}
        metrics = [f"{name} {value:.4f}" for name, value in shown.items() if isinstance(value, float)]
        self._print_line("  ".join([event, *metrics, f"{self.printed_at - self.started:.0f} s"]))

    def _print_line(self, line: str) -> None:
        if self.enabled:
            print(line, flush=True)


def Progress() -> ProgressBar:
    """Make a bar in a terminal, lines elsewhere; in a notebook a line every half minute."""
    if in_notebook():
        return PlainProgress(every_seconds=30.0)
    return Bar(leave=True) if sys.stdout.isatty() else PlainProgress()

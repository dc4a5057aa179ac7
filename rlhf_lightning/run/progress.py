"""A progress bar with the reward on it; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from rlhf_lightning.console import in_notebook

EVERY_SECONDS = 5.0


class _ToRun(ProgressBar):
    """Counts the batches that will be run: Lightning's bar looks at `max_steps` only where there is no `max_epochs`."""

    @property
    def total_train_batches(self) -> int | float:
        """Of this epoch, up to `max_steps`."""
        trainer, whole = self.trainer, self.trainer.num_training_batches
        if trainer.max_steps < 0:
            return whole
        progress, parts = trainer.fit_loop.epoch_loop.batch_progress.current, trainer.accumulate_grad_batches
        done = progress.processed  # type: ignore[attr-defined]
        return min(whole, done - done % parts + max(0, trainer.max_steps - trainer.global_step) * parts)


class Bar(_ToRun, TQDMProgressBar):
    """Lightning's own, in a terminal."""


class PlainProgress(_ToRun):
    """A line now and then: step, what the progress bar would show, seconds."""

    def __init__(self, every_seconds: float = EVERY_SECONDS) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.started = self.told = time.monotonic()
        self.enabled = True

    def disable(self) -> None:
        """Say nothing, on ranks other than the first."""
        self.enabled = False

    def enable(self) -> None:
        """Speak again."""
        self.enabled = True

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first sign of life."""
        self._print_once("measuring held-out rows before the first step")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What it found, which Lightning forgets now: until a step has measured something, nothing else is known."""
        self._tell("before the first step", trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Tell, if it is time."""
        total = self.total_train_batches
        done = int(kwargs.get("batch_idx", args[-1] if args else 0)) + 1
        if time.monotonic() - self.told < self.every_seconds and done not in (1, total):
            return
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  " if (trainer.max_epochs or 1) > 1 else ""
        self._tell(f"{epoch}batch {done}/{total}", trainer, pl_module)

    def _tell(self, what: str, trainer: Trainer, module: LightningModule) -> None:
        self.told = time.monotonic()
        shown = {n: v for n, v in self.get_metrics(trainer, module).items() if n != "v_num"}
        metrics = [f"{name} {value:.4f}" for name, value in shown.items() if isinstance(value, float)]
        self._print_once("  ".join([what, *metrics, f"{self.told - self.started:.0f} s"]))

    def _print_once(self, line: str) -> None:
        if self.enabled:
            print(line, flush=True)


def Progress() -> ProgressBar:
    """A bar in a terminal, lines elsewhere; in a notebook a line every half minute."""
    if in_notebook():
        return PlainProgress(every_seconds=30.0)
    return Bar(leave=True) if sys.stdout.isatty() else PlainProgress()

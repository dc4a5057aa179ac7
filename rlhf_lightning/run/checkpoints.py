"""Choose the events at which a run writes a checkpoint, and which checkpoints it keeps."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.optim import Optimizer

from rlhf_lightning.console import print_once
from rlhf_lightning.distributed import all_gather, any_rank, is_of_all_ranks
from rlhf_lightning.errors import UserError, text_of
from rlhf_lightning.run.atomic_checkpoints import remove_abandoned
from rlhf_lightning.run.last_checkpoint import newest_first
from rlhf_lightning.run.signals import StoppedBySignal, requeue
from rlhf_lightning.training.lightning_compat import (
    cluster_environment,
    ends_with_this_batch,
    is_within_step,
    rewind_validation,
    validation_follows,
)
from rlhf_lightning.training.random_states import set_random_states

EARLIER = "earlier"
"""Folder for the checkpoints of an earlier run, until the run that starts over has written its first."""


class Checkpoints(Checkpoint):
    """Write `checkpoints/step-N.ckpt` after every validation, at the end, and when a signal stops the run.

    `last.ckpt` is a link to the newest. After SIGTERM, and after SLURM's signal before the end of a job's time, the current
    optimiser step ends, a checkpoint is written and the run ends; likewise if a reward fails while it scores a rollout or
    held-out responses.

    Args:
        every_n_steps: write also after this number of optimiser steps.
        every_minutes: write also after this number of minutes.
        keep: number of checkpoints to keep; with at least 2 a run can resume although the newest is damaged.
    """

    def __init__(self, every_n_steps: int | None = None, every_minutes: float | None = None, keep: int = 2) -> None:
        if (
            keep < 1
            or (every_n_steps is not None and every_n_steps < 1)
            or (every_minutes is not None and every_minutes <= 0)
        ):
            raise UserError("Checkpoints: keep and every_n_steps must be at least 1, every_minutes above 0")
        self.every_n_steps, self.every_minutes, self.keep = every_n_steps, every_minutes, keep
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self.extra_step: int | None = None
        """Step of the checkpoint that an interruption caused, if the last one is of that kind."""
        self.is_ending = False
        """The last validation runs, which is of no checkpoint: a run that is extended does not have it."""
        self.received: int | None = None
        self.requeue_signal: signal.Signals | None = None
        self.handlers: dict[int, Any] = {}

    # -- when ----------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write between two optimiser steps if a checkpoint is due or the run stops; a validation that is due runs first."""
        if is_within_step(trainer) or trainer.global_step == self.saved_step:
            return
        stops = self._must_stop(pl_module)
        due = ends_with_this_batch(trainer) or self._due(trainer.global_step, pl_module)
        if validation_follows(trainer) or not (due or stops):
            return
        self.save(trainer, is_extra=not due)
        self._stop_if(stops)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after a validation, except after the one before the first step."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not self.is_ending:
            self.save(trainer)
        self._stop_if(self._must_stop(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last step, unless a checkpoint has it already."""
        if trainer.global_step != self.saved_step:
            self.save(trainer)

    def start_ending(self, trainer: Trainer) -> None:
        """Write the last step before the end of the run changes weights, such as an average that is exported."""
        self.on_train_end(trainer, trainer.lightning_module)
        self.is_ending = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write if the run failed while a rollout was collected or held-out rows were measured, on all ranks together.

        A rank that failed alone must not save: it would wait for ranks that communicate about something else.
        """
        if trainer.state.fn != "fit" or self.is_ending or not trainer.global_step:
            return
        if not isinstance(exception, Exception) or not is_of_all_ranks(exception):
            return
        collecting = getattr(getattr(getattr(pl_module, "loaders", None), "train", None), "collecting", False)
        before_validation = getattr(getattr(pl_module, "validation", None), "states_before", None)
        if before_validation is not None:
            set_random_states(before_validation)
            rewind_validation(trainer)
        elif not collecting:
            return
        try:
            self.save(trainer, is_extra=trainer.global_step != self.saved_step)
        except Exception as error:  # the exception that ends the run says more
            print(f"warning: step {trainer.global_step} could not be saved: {text_of(error)}", flush=True)

    def _due(self, step: int, module: LightningModule) -> bool:
        by_step = self.every_n_steps is not None and step % self.every_n_steps == 0
        minutes = (time.monotonic() - self.saved_at) / 60
        return by_step or (self.every_minutes is not None and any_rank(minutes >= self.every_minutes, module.device))

    # -- signals -------------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over signals and earlier checkpoints, after the strategy has read its checkpoint."""
        folder = Path(trainer.default_root_dir) / "checkpoints"
        if trainer.is_global_zero:
            remove_abandoned(folder)
        if trainer.ckpt_path is None and trainer.is_global_zero:
            self._put_aside(folder)
        if not self.handlers:
            self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over signals, and print how much disk checkpoints take."""
        self.on_sanity_check_start(trainer, pl_module)
        adapter = getattr(getattr(pl_module, "resume", None), "holds_adapter_alone", False)
        size = checkpoint_size(pl_module, trainer.optimizers, adapter)
        folder = Path(trainer.default_root_dir).absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        print_once(disk_budget(size, self.keep, shutil.disk_usage(existing).free))

    def _listen(self, trainer: Trainer) -> None:
        """Replace Lightning's signal handlers, which communicate with other processes at any point of a step."""
        launcher = trainer.strategy.launcher

        def note(number: int, frame: FrameType | None) -> None:
            if self.received is None and hasattr(launcher, "kill"):
                launcher.kill(number)  # type: ignore[union-attr]
            self.received = number

        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self.requeue_signal = environment.requeue_signal or signal.SIGUSR1
        numbers = {signal.SIGTERM, self.requeue_signal} - {None}
        self.handlers = {number: signal.signal(number, note) for number in numbers if number is not None}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self.is_ending = False
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def _must_stop(self, module: LightningModule) -> bool:
        return any_rank(self.received is not None, module.device)

    def _stop_if(self, stops: bool) -> None:
        if not stops:
            return
        number = next(n for n in all_gather(self.received) if n is not None)
        if number == self.requeue_signal:
            requeue()
        raise StoppedBySignal(number)

    # -- writing -------------------------------------------------------------------------------------------------------

    @staticmethod
    def _put_aside(folder: Path) -> None:
        """Move the checkpoints of an earlier run aside when starting over, so that `last` does not resume that run."""
        (folder / "last.ckpt").unlink(missing_ok=True)
        for path in newest_first(folder, "step-*.ckpt"):
            (folder / EARLIER).mkdir(exist_ok=True)
            path.rename(folder / EARLIER / path.name)

    def save(self, trainer: Trainer, is_extra: bool = False) -> None:
        """Write `step-N.ckpt`, link `last.ckpt` to it, and remove all but the newest `keep`.

        Args:
            trainer: of the run.
            is_extra: an interruption caused it; the next checkpoint replaces it, so that a resumed run keeps the same files.
        """
        step, folder, extra = trainer.global_step, Path(trainer.default_root_dir) / "checkpoints", self.extra_step
        self.saved_step, self.saved_at, self.extra_step = step, time.monotonic(), step if is_extra else None
        trainer.save_checkpoint(folder / f"step-{step}.ckpt", weights_only=False)  # with optimizer and loops
        if not trainer.is_global_zero:
            return
        link = folder / ".last.ckpt.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(f"step-{step}.ckpt")
        os.replace(link, folder / "last.ckpt")
        shutil.rmtree(folder / EARLIER, ignore_errors=True)
        others = [
            path for path in newest_first(folder, "step-*.ckpt") if path.name != f"step-{extra}.ckpt" or extra == step
        ]
        surplus = [] if is_extra else others[self.keep :]
        if extra not in (None, step):
            surplus.append(folder / f"step-{extra}.ckpt")
        for path in surplus:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of this checkpoint, so that a resumed run does not write it again, and whether it is extra."""
        return {"saved_step": self.saved_step, "extra_step": self.extra_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the checkpoint."""
        self.saved_step, self.extra_step = state_dict["saved_step"], state_dict.get("extra_step")


def checkpoint_size(module: nn.Module, optimizers: Iterable[Optimizer], trained_alone: bool) -> int:
    """Estimate the bytes of a checkpoint: the weights, and the moments that an optimizer will keep.

    Args:
        module: the stage.
        optimizers: of the run; one with betas keeps two numbers of 4 bytes per weight, one with momentum keeps one.
        trained_alone: the checkpoint holds the weights that train, and no others.
    """
    parameters = [each for each in module.parameters() if each.requires_grad or not trained_alone]
    weights = sum(each.numel() * each.element_size() for each in parameters)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    moments = [(2 if "betas" in group else 1 if group.get("momentum") else 0, group["params"]) for group in groups]
    return weights + sum(4 * kept * sum(each.numel() for each in params) for kept, params in moments)


def disk_budget(size: int, keep: int, free: int) -> str:
    """Say how much disk the checkpoints of a run take; one more exists while it is written.

    >>> disk_budget(3 * 2**20, 2, 2**30)
    'checkpoints: about 3.0 MiB each, at most 9.0 MiB (keep 2, and one that is written); 1024.0 MiB are free'
    >>> disk_budget(3 * 2**20, 2, 2**20)[:8]
    'warning:'
    """
    most = size * (keep + 1)
    line = (
        f"checkpoints: about {size / 2**20:.1f} MiB each, at most {most / 2**20:.1f} MiB (keep {keep}, and one that is written); "
        f"{free / 2**20:.1f} MiB are free"
    )
    return line if most <= free else f"warning: {line}; free some space, or set keep of Checkpoints to 1"

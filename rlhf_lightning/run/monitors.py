"""What the trainer is asked for and will never get, said as early as it can be known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
)

from rlhf_lightning.errors import UserError, nearest

ALWAYS = {"epoch", "step"}
"""What a ModelCheckpoint can monitor besides metrics."""
MEASURE = (LearningRateMonitor, DeviceStatsMonitor, LambdaCallback)
"""Lightning's callbacks that bring metrics of their own."""
LATE = (
    r"(Early stopping) conditioned on metric `(.+?)` which is not available.*following: `(.*)`",
    r"`(ModelCheckpoint)\(monitor='(.+?)'\)` could not find .*? metrics: \[(.*?)\]",
)
INTERVAL = r"`val_check_interval` \((\d+)\) must be less than or equal to the number of the training batches \((\d+)\)"


class MonitorCheck(Callback):
    """Refuses a validation that never comes and a metric that is never measured; stands before those that wait for it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before weights are loaded.

        Raises:
            UserError: validation is to come after more batches than an epoch has, or steps are made of no part.
        """
        if trainer.accumulate_grad_batches < 1:
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; it must be at least 1"
            )
        interval = getattr(trainer, "val_check_interval", None)  # which is not there if it is a time
        if stage != "fit" or not isinstance(interval, int) or interval < 2 or trainer.check_val_every_n_epoch is None:
            return
        if trainer.limit_val_batches > 0 and trainer.world_size == 1:
            batches = _batches(trainer, pl_module)
            if batches is not None and 0 < batches < interval:
                raise UserError(_too_long(interval, batches))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the validation before the first step, which measures what all others do.

        Raises:
            UserError: a callback waits for a metric that no part of the run measures.
        """
        metrics = set(trainer.callback_metrics)
        if not trainer.sanity_checking or not metrics or not _all_known(trainer, pl_module):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = _awaited(callback)
            whole = trainer.num_sanity_val_steps == float("inf")
            never = monitor and ("/" not in monitor or (whole and monitor.startswith("val/")))
            if monitor and never and monitor not in metrics | ALWAYS:
                raise UserError(_no_metric(type(callback).__name__, monitor, metrics))


def readable_late_error(error: BaseException) -> str | None:
    """One line for what Lightning found when it was too late to say it before; None of another error."""
    text = " ".join(str(error).split())
    for pattern in LATE:
        if found := re.search(pattern, text):
            who, monitor, known = found.groups()
            names = re.findall(r"[^`', ]+", known)
            return _no_metric(who.replace("Early stopping", "EarlyStopping"), monitor, names)
    found = re.search(INTERVAL, text)
    return _too_long(int(found[1]), int(found[2])) if found else None


def _no_metric(who: str, monitor: str, known: Iterable[str]) -> str:
    return f"{who}: no metric is called {monitor!r}; {nearest(monitor, known)} (monitor, in trainer.callbacks)"


def _too_long(interval: int, batches: int) -> str:
    return (
        f"trainer.val_check_interval is {interval} and an epoch has {batches} batches: validation would never come; set it "
        f"to {batches} or less, or add trainer.check_val_every_n_epoch: null to count batches over epochs"
    )


def _batches(trainer: Trainer, module: LightningModule) -> int | None:
    """Batches of an epoch as the trainer will limit them; None where that is not known yet."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None or trainer.overfit_batches:  # type: ignore[attr-defined]
        return None
    try:
        loader = data.train_dataloader()
        wrap = getattr(module, "train_loader", None)
        length = len(wrap(loader) if wrap else loader)
    except Exception:  # said by what needs the loader, in its own words
        return None
    limit = trainer.limit_train_batches
    return int(length * limit) if isinstance(limit, float) else min(length, limit)


def _awaited(callback: Any) -> str | None:
    waits = isinstance(callback, ModelCheckpoint) or (isinstance(callback, EarlyStopping) and callback.strict)
    return callback.monitor if waits else None


def _all_known(trainer: Trainer, module: Any) -> bool:
    """Whether every part that could measure something is ours or Lightning's: of others we know nothing."""
    rewards = [*getattr(module, "rewards", getattr(module, "evaluation_rewards", {})).values()]
    rewards += [part for reward in rewards for part in getattr(reward, "rewards", {}).values()]
    parts = [module, *rewards, *([module.algorithm] if hasattr(module, "algorithm") else [])]
    ours = all(type(part).__module__.startswith("rlhf_lightning.") for part in parts)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    known = all(type(each).__module__.startswith(("rlhf_lightning.", "lightning.")) for each in callbacks)
    return ours and known and not any(isinstance(each, MEASURE) for each in callbacks)

"""Checks of validation intervals and monitored metrics, before a run waits for them in vain."""

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
"""Names that a ModelCheckpoint can monitor besides metrics."""
MEASURE = (LearningRateMonitor, DeviceStatsMonitor, LambdaCallback)
"""Callbacks of Lightning that log metrics of their own."""
LATE = (
    r"(Early stopping) conditioned on metric `(.+?)` which is not available.*following: `(.*)`",
    r"`(ModelCheckpoint)\(monitor='(.+?)'\)` could not find .*? metrics: \[(.*?)\]",
)
PEER = r"Connection (closed|reset) by peer|remote (process|peer) (has )?(exited|terminated)|Socket closed"
"""What gloo and NCCL say when a process of the run has ended."""
INTERVAL = r"`val_check_interval` \((\d+)\) must be less than or equal to the number of the training batches \((\d+)\)"


class MonitorCheck(Callback):
    """Refuse a validation that never runs, and a monitored metric that is never measured."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the validation interval before weights are loaded.

        Raises:
            UserError: the interval exceeds the batches of an epoch, or an optimiser step has no micro-batch.
        """
        if trainer.accumulate_grad_batches < 1:
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}; it must be at least 1"
            )
        interval = getattr(trainer, "val_check_interval", None)  # absent if the interval is a time
        if stage != "fit" or not isinstance(interval, int) or interval < 2 or trainer.check_val_every_n_epoch is None:
            return
        if trainer.limit_val_batches > 0 and trainer.world_size == 1:
            batches = _batches(trainer, pl_module)
            if batches is not None and 0 < batches < interval:
                raise UserError(_too_long(interval, batches))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check monitored metrics after the first validation, which measures what all later ones do.

        Raises:
            UserError: a callback monitors a metric that nothing measures.
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
    """Reduce an error about a monitor, an interval or a process that ended to one line; return None for another error."""
    text = " ".join(str(error).split())
    if re.search(PEER, text):
        return (
            "another process of this run has ended, without which this one cannot continue; read the last line of that process, "
            "and resume with --ckpt_path last"
        )
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
        f"trainer.val_check_interval is {interval} and an epoch has {batches} batches: validation would never run; set it "
        f"to {batches} or less, or set trainer.check_val_every_n_epoch to null to count batches over epochs"
    )


def _batches(trainer: Trainer, module: LightningModule) -> int | None:
    """Count the batches of an epoch as the trainer limits them; return None if that is not known yet."""
    data: Any = getattr(trainer, "datamodule", None)
    if data is None or trainer.overfit_batches:  # type: ignore[attr-defined]
        return None
    try:
        loader = data.train_dataloader()
        wrap = getattr(module, "train_loader", None)
        length = len(wrap(loader) if wrap else loader)
    except Exception:  # raised again by the code that needs the loader
        return None
    limit = trainer.limit_train_batches
    return int(length * limit) if isinstance(limit, float) else min(length, limit)


def _awaited(callback: Any) -> str | None:
    waits = isinstance(callback, ModelCheckpoint) or (isinstance(callback, EarlyStopping) and callback.strict)
    return callback.monitor if waits else None


def _all_known(trainer: Trainer, module: Any) -> bool:
    """Say whether everything that could log a metric is of this package or Lightning."""
    rewards = [*getattr(module, "rewards", getattr(module, "evaluation_rewards", {})).values()]
    for reward in rewards:  # which grows
        inner = getattr(reward, "reward", None)
        rewards += [*getattr(reward, "rewards", {}).values(), *([] if inner is None else [inner])]
    sources = [module, *rewards, *([module.algorithm] if hasattr(module, "algorithm") else [])]
    ours = all(type(source).__module__.startswith("rlhf_lightning.") for source in sources)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    known = all(type(each).__module__.startswith(("rlhf_lightning.", "lightning.")) for each in callbacks)
    return ours and known and not any(isinstance(each, MEASURE) for each in callbacks)

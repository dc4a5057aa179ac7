"""Callbacks of Lightning that monitor a metric of an evaluation that failed: they skip that validation."""

from __future__ import annotations

from collections.abc import Collection

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


def stand_ins(trainer: Trainer, missing: Collection[str], measured: Collection[str], prefix: str) -> dict[str, float]:
    """Return values for the metrics that a failed evaluation did not measure.

    Lightning stops a run whose `EarlyStopping` or `ModelCheckpoint` finds no value, or a NaN. A monitored metric therefore gets
    the value of an earlier validation, or the worst number there is, neither of which is an improvement; `EarlyStopping` does
    not count this validation. Any other metric becomes NaN.

    Args:
        trainer: of the run.
        missing: names of metrics that were measured before and are not now.
        measured: names of all metrics of this validation.
        prefix: `val/` or `test/`, with which all names begin.
    """
    values = dict.fromkeys(missing, float("nan"))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = getattr(callback, "monitor", None)
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or not isinstance(name, str):
            continue
        if not name.startswith(prefix) or name in measured:
            continue
        worst = torch.finfo(torch.float32).max * (1 if callback.mode == "min" else -1)
        earlier = float(trainer.callback_metrics.get(name, worst))
        values[name] = earlier if earlier == earlier else worst
        if isinstance(callback, EarlyStopping) and not trainer.sanity_checking:
            callback.wait_count -= 1
    return values

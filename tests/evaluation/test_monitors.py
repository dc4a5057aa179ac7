"""Callbacks that monitor a metric whose evaluation failed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from rlhf_lightning.evaluation.monitors import stand_ins


def trainer_of(*callbacks: Any, **metrics: float) -> Any:
    values = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(callbacks=callbacks, callback_metrics=values, sanity_checking=False)


def test_an_unmonitored_metric_is_unknown() -> None:
    values = stand_ins(trainer_of(val_x=1.0), {"val/x"}, {"val/reward"}, "val/")
    assert list(values) == ["val/x"]
    assert math.isnan(values["val/x"])


def test_a_monitored_metric_keeps_its_value_and_the_validation_does_not_count() -> None:
    stopping = EarlyStopping("val/x", patience=2, mode="max")
    stopping.wait_count = 1
    assert stand_ins(trainer_of(stopping, val_x=0.25), {"val/x"}, set(), "val/") == {"val/x": 0.25}
    assert stopping.wait_count == 0  # Lightning adds 1 for a value that is no improvement


def test_a_metric_that_was_never_measured_is_the_worst() -> None:
    low, high = EarlyStopping("val/a", mode="min"), ModelCheckpoint(monitor="val/b", mode="max")
    values = stand_ins(trainer_of(low, high, ModelCheckpoint()), set(), {"val/c"}, "val/")
    assert values == {"val/a": torch.finfo(torch.float32).max, "val/b": torch.finfo(torch.float32).min}


def test_a_measured_metric_and_one_of_training_are_left_alone() -> None:
    trainer = trainer_of(EarlyStopping("val/a"), ModelCheckpoint(monitor="reward/mean"))
    assert stand_ins(trainer, set(), {"val/a"}, "val/") == {}

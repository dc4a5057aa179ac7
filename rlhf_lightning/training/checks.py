"""Checks before weights are loaded: numbers of a stage, and options of the trainer that cannot work with a stage."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import DoublePrecision

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.lightning_compat import is_tuner_callback

UNSUPPORTED_CALLBACKS = {
    GradientAccumulationScheduler: "the loss is divided by the weight of the whole optimiser step, which is counted before its "
    "first micro-batch; set trainer.accumulate_grad_batches",
    LearningRateFinder: "it sets an attribute lr of the module, and a stage has none; in Python, "
    "Tuner(trainer).lr_find(stage, datamodule=data, update_attr=False) finds a value for optimizer.lr",
    ModelPruning: "it looks for weights before they are loaded, and would prune none",
    StochasticWeightAveraging: "it copies the weights before they are loaded, and would average none; use WeightAveraging or "
    "EMAWeightAveraging",
}
"""Callback of Lightning to the reason why no stage works with it."""


def check_minimum(least: int, **values: float | None) -> None:
    """Refuse arguments of a stage that are too small; None is no limit.

    Raises:
        UserError: naming the first of them.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"model.{name} is {value}; it must be at least {least}")


def check_temperature(name: str, value: float) -> None:
    """Refuse a temperature of a stage that is negative or not finite.

    Raises:
        UserError: it is.
    """
    if not 0 <= value < math.inf:
        raise UserError(f"model.{name} is {value}; set it to 0 (greedy) or a positive number")


def check_trainer(trainer: Trainer) -> None:
    """Refuse callbacks that would do nothing or something else, and a precision that no model here has.

    Raises:
        UserError: naming the first of them.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        harmless = getattr(callback, "scheduling", None) == {0: 1} or is_tuner_callback(callback)
        for kind, reason in () if harmless else UNSUPPORTED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {kind.__name__} cannot work here: {reason}")
    if isinstance(trainer.precision_plugin, DoublePrecision):
        raise UserError("trainer.precision 64-true cannot work here: log-probabilities are float32; set it to 32-true")

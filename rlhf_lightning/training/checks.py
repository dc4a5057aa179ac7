"""Checks before weights are loaded: numbers of a stage, and options of the trainer that cannot work with a stage."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import DoublePrecision

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.lightning_compat import is_tuner_callback, running_methods

UNSUPPORTED_CALLBACKS = {
    BaseFinetuning: "it freezes layers before the weights are loaded, and would freeze none; train an adapter instead (lora)",
    BatchSizeFinder: "it changes data.batch_size, and with it the gradient, after the config of the run is recorded; set "
    "max_tokens_per_batch beside the model's name, which limits memory and changes no gradient",
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


def check_callbacks(trainer: Trainer) -> None:
    """Refuse callbacks that would do nothing or something else.

    Raises:
        UserError: naming the first of them.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        harmless = getattr(callback, "scheduling", None) == {0: 1} or is_tuner_callback(callback)
        for kind, reason in () if harmless else UNSUPPORTED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {type(callback).__name__} cannot work here: {reason}")
        saves = isinstance(callback, ModelCheckpoint) and getattr(callback, "save_on_exception", False)
        if (saves or isinstance(callback, OnExceptionCheckpoint)) and trainer.world_size > 1:
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} cannot save on an exception on {trainer.world_size} processes: "
                "one that failed alone would wait for the others forever; remove it, or set save_on_exception to false; "
                "Checkpoints saves where all processes fail together"
            )


def check_nesting(trainer: Trainer) -> None:
    """Refuse `trainer.validate` and the like within a hook of `trainer.fit`, which would reset the loops of the run.

    Raises:
        UserError: naming both methods.
    """
    inner, *outer = running_methods(trainer)
    if outer:
        raise UserError(
            f"trainer.{inner} was called within trainer.{outer[0]}, whose loops it would reset; call it after "
            f"trainer.{outer[0]}, set trainer.val_check_interval, or measure in an Evaluation (docs/extending.md)"
        )


def check_trainer(trainer: Trainer) -> None:
    """Refuse a precision that no model here has.

    Raises:
        UserError: the trainer has it.
    """
    if isinstance(trainer.precision_plugin, DoublePrecision):
        raise UserError("trainer.precision 64-true cannot work here: log-probabilities are float32; set it to 32-true")

"""What of Lightning's cannot work with a stage, in one line each."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins.precision import DoublePrecision

from rlhf_lightning.errors import UserError

CALLBACKS = {
    GradientAccumulationScheduler: "a loss is divided by the weight of its whole step, whose parts are counted before the first; "
    "set trainer.accumulate_grad_batches",
    LearningRateFinder: "it writes into an attribute lr of the module, which a stage has not; in Python, "
    "Tuner(trainer).lr_find(stage, datamodule=data, update_attr=False) finds what to set optimizer.lr to",
    ModelPruning: "it looks for weights before there are any, and would prune none",
    StochasticWeightAveraging: "it copies the weights before there are any, and would average none; use WeightAveraging or "
    "EMAWeightAveraging",
}


def check_trainer(trainer: Trainer) -> None:
    """Refuse callbacks that would do nothing or something else, and a precision that no model here has.

    Raises:
        UserError: naming the first of them.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        harmless = getattr(callback, "scheduling", None) == {0: 1} or getattr(
            callback, "_early_exit", False
        )  # a Tuner's
        for kind, reason in () if harmless else CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"trainer.callbacks: {kind.__name__} cannot work here: {reason}")
    if isinstance(trainer.precision_plugin, DoublePrecision):
        raise UserError("trainer.precision 64-true cannot work here: what is measured is float32; use 32-true")

"""Resuming: the state of a stage in a checkpoint besides weights and optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lightning.pytorch import LightningModule
from torch import Tensor

from rlhf_lightning.distributed import all_gather
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.training.lightning_compat import (
    has_trainer,
    rewind_to_step_start,
    set_global_step,
    train_loader_state,
)
from rlhf_lightning.training.loaders import LoaderBinding
from rlhf_lightning.training.random_states import random_states, set_random_states

SHARED, RANKS = "stage", "ranks"
"""Keys of a checkpoint: state that all ranks have in common, and a list of the states of each."""
FORMAT, PRESENT_FORMAT = "format", 2
"""Key of a checkpoint, and its value: 2 since the state of the train loader is that of any number of processes."""

OPTIMIZERS = "optimizer_classes"
"""Key of a checkpoint: the class of each optimizer."""


def _class_of(optimizer: Any) -> str:
    kind = type(getattr(optimizer, "_optimizer", optimizer))  # inside Lightning's wrapper
    return f"{kind.__module__}.{kind.__qualname__}"


class Resumable(Protocol):
    """An object whose state belongs into checkpoints: plain numbers and CPU tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore what `state_dict` returned."""


class ResumeState:
    """Saves and restores the parts of a stage, the random states of every rank, and the place in the train loader.

    Args:
        module: the stage.
        loaders: gets the state of the train loader.
    """

    def __init__(self, module: LightningModule, loaders: LoaderBinding) -> None:
        self.module, self.loaders = module, loaders
        self.shared: dict[str, Resumable] = {}
        """Objects whose state is the same on all ranks, by name."""
        self.per_rank: dict[str, Resumable] = {}
        """Objects whose state differs from rank to rank, by name."""
        self.weights_changed = False
        """The weights are no longer those that the model config names."""
        self._random_states: dict[str, Any] | None = None
        self._steps_before: int | None = None
        self._optimizers: list[str] | None = None

    @property
    def holds_adapter_alone(self) -> bool:
        """A checkpoint of this stage holds an adapter without its frozen base."""
        return any(is_adapted(module) for child in self.module.children() for module in child.modules())

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the stage to a checkpoint; every rank must call it."""
        own = {name: owner.state_dict() for name, owner in self.per_rank.items()}
        checkpoint[FORMAT] = PRESENT_FORMAT
        checkpoint[RANKS] = all_gather({**own, "random": random_states()})
        checkpoint[OPTIMIZERS] = [_class_of(optimizer) for optimizer in self.module.trainer.optimizers]
        checkpoint[SHARED] = {name: owner.state_dict() for name, owner in self.shared.items()}
        if self.holds_adapter_alone and "averaging_state" not in checkpoint:  # WeightAveraging reads all weights
            trained = self._trained()
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the stage from a checkpoint, which is rewound where it is within an optimiser step.

        Without a trainer (`load_from_checkpoint`) restore the shared state alone.

        Raises:
            UserError: the checkpoint has another format, or is of a run that trained other weights.
        """
        _check_format(checkpoint)
        self._check_weights(checkpoint.get("state_dict"))
        self._optimizers = checkpoint.get(OPTIMIZERS)
        self.weights_changed = True
        for name, owner in self.shared.items():
            owner.load_state_dict(checkpoint[SHARED][name])
        if not has_trainer(self.module):
            return
        trainer = self.module.trainer
        if trainer.optimizers:  # under FSDP2
            self.check_optimizers(trainer.optimizers)
        self._load_rank(checkpoint[RANKS], self.module.global_rank, trainer.world_size)
        rewind_to_step_start(checkpoint, int(trainer.accumulate_grad_batches))
        restored = train_loader_state(checkpoint)
        # under FSDP2 the checkpoint is read after a schedule asked for the number of steps, which makes the loader
        if self.loaders.train is None:
            self.loaders.restored = restored
        elif restored is not None:
            self.loaders.train.load_state_dict(restored)
        if trainer.state.fn != "fit":  # else a validation would be logged at step 0
            self._steps_before = set_global_step(trainer, checkpoint["global_step"])

    def check_optimizers(self, optimizers: Sequence[Any]) -> None:
        """Refuse another class of optimizer than that of the checkpoint, whose state it cannot read.

        Raises:
            UserError: naming both.
        """
        made = [_class_of(optimizer) for optimizer in optimizers]
        if self._optimizers and made != self._optimizers:
            raise UserError(
                f"the optimizer is {made[0]}, and the checkpoint is of a run with {self._optimizers[0]}, whose state it cannot "
                f"read; set optimizer to {self._optimizers[0]}, or start a new run from the export"
            )

    def _load_rank(self, states: list[dict[str, Any]], rank: int, ranks: int) -> None:
        """Restore the state of one rank.

        From another number of ranks an owner makes it by `for_other_ranks`, or gets that of the rank with this number modulo
        theirs. Random states of Python and torch are then restored on the ranks that have one.
        """
        for name, owner in self.per_rank.items():
            known = [state[name] for state in states]
            convert = getattr(owner, "for_other_ranks", None)
            other = len(states) != ranks and convert is not None
            owner.load_state_dict(convert(known) if other else known[rank % len(known)])  # type: ignore[misc]
        self._random_states = states[rank]["random"] if rank < len(states) else None

    def start_training(self) -> None:
        """Restore the random states: Lightning samples random numbers between `load` and the first step."""
        self.weights_changed = True
        if self._random_states is not None:
            set_random_states(self._random_states)
            self._random_states = None

    def reset(self) -> None:
        """Drop what a checkpoint that an earlier run loaded left."""
        self._random_states = self._optimizers = None

    def release(self) -> None:
        """Give the trainer its own step count back after it measured a checkpoint."""
        if self._steps_before is not None:
            set_global_step(self.module.trainer, self._steps_before)
            self._steps_before = None

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.module.named_parameters() if parameter.requires_grad}

    def _check_weights(self, saved: dict[str, Tensor] | None) -> None:
        """Refuse weights of another run; into an adapter run Lightning would load those whose names match."""
        if saved is None:
            return
        known, trained = self.module.state_dict(), self._trained()
        own = {name: x.shape for name, x in known.items() if not self.holds_adapter_alone or name in trained}
        theirs = {name: x.shape for name, x in saved.items() if name in own or name not in known}
        if other := sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)):
            raise UserError(
                f"the checkpoint is of a run that trains other weights than this run ({len(other)} differ, {other[0]} for "
                "one); resume with the model, algorithm, lora, critic and share_base of that run"
            )


def _check_format(checkpoint: dict[str, Any]) -> None:
    found = checkpoint.get(FORMAT) or 1
    if found != PRESENT_FORMAT:
        raise UserError(
            f"the checkpoint has format {found}, and this version reads format {PRESENT_FORMAT}: resume with the version "
            "that saved it, or start a new run from the export of the old one"
        )

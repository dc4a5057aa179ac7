"""The options of a run in its checkpoints, compared with those of the run that resumes it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.run.checkpoint_integrity import plain_only
from rlhf_lightning.run.resume_options import Change, as_plain, changes, check_changes, check_end
from rlhf_lightning.training.optimizers import change_option

OPTIONS = "options"
"""Key of a checkpoint."""


class RunOptions(Callback):
    """Save the options of the run in every checkpoint, and apply those that were allowed to change.

    Args:
        config: of the run, plain values.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.history = config, list[dict[str, Any]]()
        """Changes of this run, the oldest first, each with the step from which on it counts."""
        self.pending: list[Change] = []
        self.of_callbacks: list[tuple[Callback, str, Any]] = []

    def resume(self, checkpoint: Path, allowed: Sequence[str], plain: bool = True) -> None:
        """Compare the options with those of a checkpoint, before weights are loaded.

        Args:
            checkpoint: to resume from.
            allowed: options that may change.
            plain: read nothing but plain tensors and numbers.

        Raises:
            UserError: an option changed that must not, or another end is already passed.
        """
        content = read_without_tensors(checkpoint, plain)
        saved = content.get(OPTIONS)
        if saved is None:  # of a trainer of one's own
            return
        found = changes(json.loads(saved["config"]), self.config)
        check_end(found, content["global_step"], content["epoch"])
        self.pending = check_changes(found, allowed, str(checkpoint.parent.parent))
        self.history = [*saved["changes"], *as_plain(self.pending, content["global_step"])]

    @property
    def note(self) -> str:
        """What of the config did not count from the beginning, as a comment of config.yaml; empty if nothing changed."""
        said = [f"{each['key']} was {json.dumps(each['before'])} up to step {each['step']}" for each in self.history]
        return f"# changed while the run was resumed: {'; '.join(said)}\n" if said else ""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the options and their history."""
        checkpoint[OPTIONS] = {"config": json.dumps(self.config), "changes": self.history}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the options of callbacks: the state of some, such as EarlyStopping, holds the options of the run before."""
        self.of_callbacks = constructor_options(trainer.callbacks)  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the config of the run to the loggers, as hyper-parameters."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give callbacks and the optimizer their options: Lightning restored those of the checkpoint."""
        for callback, name, value in self.of_callbacks:
            setattr(callback, name, value)
        self.of_callbacks = []
        for change in self.pending:
            if change.key.startswith("model.optimizer."):
                schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
                change_option(
                    trainer.optimizers,
                    schedulers,
                    change.key.removeprefix("model.optimizer."),
                    change.before,
                    change.now,
                )
        self.pending = []


def read_without_tensors(path: Path, plain: bool = True) -> dict[str, Any]:
    """Read a checkpoint; its tensors stay on disk until they are used.

    Args:
        path: of a file, or of a folder checkpoint.
        plain: read nothing but plain tensors and numbers.

    Raises:
        UserError: it holds other objects.
    """
    with plain_only(path):
        file = path / "meta.pt" if path.is_dir() else path
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=plain, mmap=not path.is_dir())
    return content


def constructor_options(callbacks: Sequence[Callback]) -> list[tuple[Callback, str, Any]]:
    """List the plain options that callbacks were made with, as far as they keep them under their names."""
    return [
        (callback, name, vars(callback)[name])
        for callback in callbacks
        for name in inspect.signature(type(callback).__init__).parameters
        if isinstance(vars(callback).get(name), int | float | str | bool)
    ]

"""Loaders of a stage: those of the data module, wrapped so that they shard, resume and respect the trainer's limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollouts.row_source import NO_BATCH, RowSource, rows_of
from rlhf_lightning.rollouts.step_loader import StepLoader, ValidationLoader
from rlhf_lightning.training.rows import single_loader
from rlhf_lightning.types import RawRows

Wrap = Callable[[Iterable[Any]], Any]


class LoaderBinding:
    """Binds the loaders of a data module to a stage. Once there is a data module, Lightning asks it alone for loaders."""

    def __init__(self, module: LightningModule) -> None:
        self.module = module
        self.train: Any = None
        """The train loader of the run; None until Lightning asks for it."""
        self.restored: dict[str, Any] | None = None
        """State from a checkpoint for the next train loader."""

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs the stage."""
        return self.module.trainer

    def bind(self, wrap_train: Wrap, read: Callable[[Any], RawRows] = rows_of) -> None:
        """Make the data module give Lightning wrapped loaders; those of held-out rows are sharded over the ranks.

        Args:
            wrap_train: makes the train loader of the stage from that of the data module.
            read: a batch of held-out rows → its rows.

        Raises:
            UserError: there is no data module.
        """
        data: LightningDataModule | None = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError(
                f"{type(self.module).__name__} takes its rows from a data module, and there is none: set `data:` in the config, "
                "or in Python call trainer.fit(stage, datamodule=LoaderData(train_loader, validation_loader)) with "
                "rlhf_lightning.LoaderData"
            )

        def held_out(loader: Iterable[Any]) -> ValidationLoader:
            return ValidationLoader(loader, read)

        for name, wrap in {
            "train_dataloader": lambda loader: self._resumed(wrap_train(loader)),
            "val_dataloader": held_out,
            "test_dataloader": held_out,
            "predict_dataloader": held_out,
        }.items():
            if not is_overridden(name, data):  # Lightning skips loaders that the data module does not define
                continue
            original = getattr(getattr(data, name), "original", getattr(data, name))
            setattr(data, name, _wrapped(original, wrap))

    def _resumed(self, loader: Any) -> Any:
        """Resume from the checkpoint, also at the end of an epoch, where Lightning 2.6 drops the state of a loader.

        Without a checkpoint resume where the loader stopped that this one replaces (`reload_dataloaders_every_n_epochs`).
        """
        replaced = self.train is not None and self.restored is None
        state = self.train.state_dict() if replaced else self.restored
        self.train, self.restored = loader, None
        if state is not None:
            loader.load_state_dict(state)
        return loader

    def epoch(self, batches: int) -> dict[str, Any]:
        """Return the arguments `limit` and `repeat` of a loader.

        Args:
            batches: of a full epoch; Lightning takes fewer by `limit_train_batches`, and the same ones by `overfit_batches`.

        Raises:
            UserError: there are none.
        """
        if not batches:
            raise UserError(NO_BATCH)
        limit = self.trainer.limit_train_batches
        taken = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return {"limit": max(1, taken), "repeat": bool(self.trainer.overfit_batches)}  # type: ignore[attr-defined]

    def step_loader(
        self, loader: Iterable[Any], encode: Callable[[RawRows], Any], weigh: Callable[[Any], Tensor]
    ) -> StepLoader:
        """Make a train loader of recorded rows; see `StepLoader`."""
        source = RowSource(loader, run_seed())
        accumulate = int(self.trainer.accumulate_grad_batches)
        return StepLoader(source, encode, weigh, accumulate, **self.epoch(len(source)))

    def reset(self) -> None:
        """Drop the train loader and any state for it: a stage may be trained again, and be copied."""
        self.train = self.restored = None


def run_seed() -> int:
    """Return the seed of the run, from which the orders of rows are derived."""
    return int(torch.initial_seed() % 2**31)


def _wrapped(original: Callable[[], Any], wrap: Wrap) -> Callable[[], Any]:
    def load() -> Any:
        loader = single_loader(original())
        return loader if loader is None or loader == [] else wrap(loader)

    load.original = original  # type: ignore[attr-defined]
    return load

"""Loaders of a data module are wrapped, limited and resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.loaders import LoaderBinding, run_seed


class Rows(LightningDataModule):
    def train_dataloader(self) -> Any:
        return [DataLoader(list(range(4)), batch_size=2)]  # type: ignore[arg-type]


class Counting:
    """A loader whose state is a number."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.place = rows, 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def test_a_new_loader_resumes_where_the_checkpoint_or_the_old_one_was(module: Callable[..., Any]) -> None:
    data = Rows()
    loaders = LoaderBinding(module(datamodule=data))
    loaders.bind(Counting)
    loaders.bind(Counting)  # wraps the original once, not its wrapper
    first = data.train_dataloader()
    assert isinstance(first.rows, DataLoader)
    first.place = 3
    assert data.train_dataloader().place == 3
    loaders.restored = {"place": 5}
    assert data.train_dataloader() is loaders.train
    assert loaders.train.place == 5
    loaders.reset()
    assert data.train_dataloader().place == 0


@pytest.mark.parametrize(("limit", "taken"), [(1.0, 8), (0.5, 4), (3, 3), (20, 8), (0.01, 1)])
def test_an_epoch_has_the_batches_that_lightning_takes(module: Callable[..., Any], limit: float, taken: int) -> None:
    loaders = LoaderBinding(module(limit_train_batches=limit, overfit_batches=2))
    assert loaders.epoch(8) == {"limit": taken, "repeat": True}
    with pytest.raises(UserError, match="has no batch"):
        loaders.epoch(0)


def test_a_data_module_is_needed(module: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="Module takes its rows from a data module"):
        LoaderBinding(module()).bind(Counting)


class HeldOut(LightningDataModule):
    """Validation rows, a test loader that is none, and no loader for predictions."""

    def train_dataloader(self) -> Any:
        return DataLoader(list("abcd"), batch_size=2, collate_fn=list)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return [DataLoader(list("abcd"), batch_size=2, collate_fn=list)]  # type: ignore[arg-type]

    def test_dataloader(self) -> Any:
        return []


def test_held_out_loaders_are_wrapped_where_there_are_any(module: Callable[..., Any]) -> None:
    data = HeldOut()
    LoaderBinding(module(datamodule=data)).bind(Counting, read=lambda batch: [{"prompt": text * 2} for text in batch])
    assert list(data.val_dataloader()) == [[{"prompt": "aa"}, {"prompt": "bb"}], [{"prompt": "cc"}, {"prompt": "dd"}]]
    assert data.test_dataloader() == []
    assert isinstance(data.train_dataloader(), Counting)
    assert "predict_dataloader" not in vars(data)


def test_a_loader_of_recorded_rows_has_the_limits_and_the_seed_of_the_run(module: Callable[..., Any]) -> None:
    stage = module(limit_train_batches=3, overfit_batches=0, accumulate_grad_batches=2)
    rows = [{"prompt": str(number)} for number in range(10)]
    loader: Any = DataLoader(rows, batch_size=2, shuffle=True, collate_fn=list)  # type: ignore[arg-type]
    for seed in (5, 2**31 + 5):
        torch.manual_seed(seed)
        assert run_seed() == 5
        made = LoaderBinding(stage).step_loader(loader, list, len)
        assert (made.accumulate, made.limit, made.repeat, made.source.seed) == (2, 3, False, 5)

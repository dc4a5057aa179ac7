"""Rows of a data module, read before training: checks of their columns, and a pass over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from rlhf_lightning.data.screening import Screening, screen
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoded, Encoder
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.row_source import rows_of
from rlhf_lightning.types import RawRows


def visible_rows(trainer: Trainer) -> list[tuple[str, Any]]:
    """Return the row lists that the data module has as attributes (`train_rows`, …), each with a name for messages."""
    data = getattr(trainer, "datamodule", None)
    named = [(name, getattr(data, f"{name}_rows", None)) for name in ("train", "validation", "test", "predict")]
    return [(f"{name} data", rows) for name, rows in named if rows is not None]


def check_rows(trainer: Trainer, read: Callable[[Any], object], reader: str) -> None:
    """Refuse rows of another kind before weights are loaded.

    Args:
        trainer: of the run.
        read: reads a row; raises KeyError for a row without a column that it needs.
        reader: who learns from what, for the message.

    Raises:
        UserError: `read` misses a column of a first row.
    """
    for name, rows in visible_rows(trainer):
        try:
            read(rows[0]) if len(rows) else None
        except KeyError as error:
            raise UserError(f"{reader}; the {name} has: {', '.join(rows[0])}") from error


def check_reward_columns(
    trainer: Trainer, training: Iterable[Reward], held_out: Iterable[Reward], predicting: Iterable[Reward] = ()
) -> None:
    """Refuse rows that lack a column of a reward, before weights are loaded.

    Args:
        trainer: of the run.
        training: rewards of responses to the train data.
        held_out: rewards of responses to the validation and test data.
        predicting: rewards of responses to the predict data.
    """
    for name, rows in visible_rows(trainer):
        columns = {column for row in rows for column in row}
        rewards = {"train data": training, "predict data": predicting}.get(name, held_out)
        for reward in rewards if columns else ():
            reward.check_columns(columns, name)


def screen_visible(
    trainer: Trainer,
    encoder: Encoder,
    encode: Callable[[dict[str, Any]], list[Encoded]],
    used: Iterable[str],
    rewards: Iterable[Reward] = (),
) -> dict[str, Screening]:
    """Encode every row that the data module of a trainer shows; see `screen` for the arguments."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return screen(data, encoder, encode, used, rewards, trainer.predicting)


def all_rows(trainer: Trainer, size: int = 16) -> Iterator[RawRows]:
    """Yield every row of training, validation and test once, `size` at a time.

    A data module without visible rows yields the batches of those loaders that the present call of the trainer uses.
    """
    visible = [rows for name, rows in visible_rows(trainer) if name != "predict data"]
    for rows in visible:
        for start in range(0, len(rows), size):
            yield [rows[i] for i in range(start, min(start + size, len(rows)))]
    used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
    for name in () if visible else used[trainer.state.fn]:  # type: ignore[index]
        loader = getattr(trainer.datamodule, f"{name}_dataloader")  # type: ignore[attr-defined]
        original = single_loader(getattr(loader, "original", list)())
        yield from (rows_of(batch) for batch in (() if original is None else original))


def single_loader(loader: Any) -> Any:
    """Return the loader itself, also where it is the only one of a list.

    Raises:
        UserError: there are several, which Lightning would run one after another or side by side.
    """
    if isinstance(loader, list | tuple) and any(isinstance(each, DataLoader) for each in loader):
        if len(loader) == 1:
            return loader[0]
    elif not isinstance(loader, dict | CombinedLoader):
        return loader
    raise UserError(
        "the data module returns several loaders, and a stage takes one for training and one for validation; put their rows "
        "into one, with a column that tells them apart"
    )

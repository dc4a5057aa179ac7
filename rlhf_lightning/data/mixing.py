"""Streaming and mixing of a data module: its streams, the rows checked before the run, and the prompts held out."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rlhf_lightning.console import print_once
from rlhf_lightning.data.messages import BadRow
from rlhf_lightning.data.readers import MemoryReader, Reader, readers
from rlhf_lightning.data.reading import Source, entries
from rlhf_lightning.data.splits import prompt_key
from rlhf_lightning.data.streaming import RowStream, StreamLoader
from rlhf_lightning.errors import UserError

Row = dict[str, Any]
CHECKED = 1000
"""Rows of a streamed data set that are read and checked before weights are loaded."""


class MixedData(Protocol):
    """The options and methods of `FileData` that streaming and mixing use."""

    streaming: bool
    steps_per_epoch: int | None
    shuffle_buffer: int
    mix: list[float] | None
    limit: int | None
    batch_size: int
    num_workers: int
    seed: int
    validation_fraction: float
    train_rows: list[Row] | None

    @property
    def sources(self) -> Mapping[str, Any]:
        """Files, hub names or objects by split."""

    def accept(self, raw: Row, place: str, entry: int = 0) -> Sequence[Row]:
        """Make rows from a raw row."""

    def accept_train(self, raw: Row, place: str) -> Sequence[Row]:
        """Make rows from a streamed raw row."""

    def check_columns(self, source: Source) -> None:
        """Refuse a source without a column that rows need."""

    def tell(self, faults: list[str], good: int) -> None:
        """Stop at bad rows, or count and show them."""

    def tell_late(self, fault: str) -> None:
        """Stop at a bad row that is found during the run, or count it."""


def check_options(data: MixedData) -> None:
    """Refuse options that cannot work together.

    Raises:
        UserError: naming the first of them.
    """
    for name, least in (("steps_per_epoch", 1), ("shuffle_buffer", 1)):
        value = getattr(data, name)
        if value is not None and value < least:
            raise UserError(f"data.{name} is {value}; it must be at least {least}")
    for weight in data.mix or ():
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(
                f"data.mix holds {weight}; set every weight to a positive number, or remove the source from data.train"
            )
    if data.streaming and data.num_workers:
        raise UserError(
            f"data.num_workers is {data.num_workers}; a streamed data set is read by the run itself, set it to 0"
        )


def streamed_head(data: MixedData) -> list[Row]:
    """Read and check the first rows of a streamed training set, and say so.

    Raises:
        UserError: a row or a column is wrong.
    """
    sources = _sources(data)
    rows: list[Row] = []
    faults: list[str] = []
    for own in sources:
        rows += _first_rows(data, own, max(1, min(data.limit or CHECKED, CHECKED) // len(sources)), faults)
    data.tell(faults, len(rows))
    if not rows:
        raise UserError(f"data set {data.sources['train']} is empty: no row to use")
    print_once(f"data: streaming; the first {len(rows)} rows are checked before the run, all others when they are read")
    return rows


def held_out_prompts(data: MixedData, rows: list[Row]) -> set[str]:
    """Choose prompts of the checked rows for validation; no row with one of them is ever trained on.

    Raises:
        UserError: no prompt would be left.
    """
    if not data.validation_fraction or data.sources["validation"] is not None:
        return set()
    prompts = list(dict.fromkeys(prompt_key(row) for row in rows))
    held = max(1, round(data.validation_fraction * len(prompts)))
    if held == len(prompts):
        raise UserError(
            f"data set {data.sources['train']}: prompts {held}, held out {held}, left to learn from 0; give more rows, a "
            "data.validation file, or data.validation_fraction: 0"
        )
    return set(random.Random(data.seed).sample(prompts, held))


def train_loader(data: MixedData, trainer: Any) -> StreamLoader:
    """Return the loader of streamed, mixed or sized training rows."""
    if data.streaming:
        streams = [
            RowStream(own, data.accept_train, data.tell_late, data.shuffle_buffer, data.limit) for own in _sources(data)
        ]
        return StreamLoader(streams, data.mix or [1.0] * len(streams), data.batch_size, epoch_batches(data, trainer))
    rows = data.train_rows or []
    count = 1 if data.mix is None else len(data.mix)
    groups = [[row for row in rows if data.mix is None or row.entry == entry] for entry in range(count)]  # type: ignore[attr-defined]
    for entry, group in enumerate(groups):
        if not group:
            raise UserError(f"source {entry + 1} of data.train has no row to train on, and data.mix gives it a weight")
    streams = [RowStream([MemoryReader(group)], lambda row, _: [row], data.tell_late, len(group)) for group in groups]
    batches = data.steps_per_epoch or max(1, len(rows) // data.batch_size)
    return StreamLoader(streams, data.mix or [1.0], data.batch_size, batches)


def epoch_batches(data: MixedData, trainer: Any) -> int:
    """Return the batches of an epoch of a data set whose length is not known.

    Raises:
        UserError: neither the data module nor the trainer says.
    """
    if data.steps_per_epoch:
        return int(data.steps_per_epoch)
    steps = getattr(trainer, "max_steps", -1)
    if steps is None or steps < 1:
        raise UserError(
            "data.streaming reads a data set without a known length; set data.steps_per_epoch (batches of an epoch) or "
            "trainer.max_steps"
        )
    return int(steps * trainer.accumulate_grad_batches)


def check_mix(data: MixedData) -> None:
    """Refuse weights that are not one a source.

    Raises:
        UserError: naming both numbers.
    """
    if data.mix is not None and len(data.mix) != (count := len(entries(data.sources["train"]))):
        raise UserError(
            f"data.mix has {len(data.mix)} weights and data.train has {count} sources; set one weight a source"
        )


def _sources(data: MixedData) -> list[list[Reader]]:
    """Readers of each source that has a weight of its own; of all files together without `mix`."""
    given = data.sources["train"]
    if given is None:
        raise UserError("data.train is not set; give a file, a glob or a hub name")
    check_mix(data)
    found = [readers(entry) for entry in entries(given)]
    return found if data.mix is not None else [[reader for own in found for reader in own]]


def _first_rows(data: MixedData, own: Sequence[Reader], count: int, faults: list[str]) -> list[Row]:
    rows: list[Row] = []
    for reader in own:
        if len(rows) >= count:
            break
        places, _ = reader.window(None, count - len(rows))
        raw: list[tuple[Row, str]] = []
        for place in places:
            try:
                raw.append(reader.row(place))
            except BadRow as error:
                faults.append(str(error))
        data.check_columns(Source(reader.name, [row for row, _ in raw]))
        for row, place in raw:
            try:
                rows += data.accept(row, place)
            except BadRow as error:
                faults.append(str(error))
    return rows

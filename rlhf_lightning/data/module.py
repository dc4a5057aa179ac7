"""What the data modules share: sources, splits, faults of rows, loaders."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.console import print_once
from rlhf_lightning.data.formats import BadRow
from rlhf_lightning.data.mixing import (
    check_mix,
    check_options,
    epoch_batches,
    held_out_prompts,
    prompt_key,
    streamed_head,
    train_loader,
)
from rlhf_lightning.data.objects import is_endless
from rlhf_lightning.data.reading import Source, entries, read
from rlhf_lightning.errors import UserError, nearest

Row = dict[str, Any]
if TYPE_CHECKING:
    Paths = str | Iterable[Any] | None  # Python takes rows in memory as well
else:
    Paths = str | list[str] | None  # what a config can hold
SHOWN_FAULTS = 3


class PlacedRow(dict[str, Any]):
    """A row that knows where it was read: whatever shuffles and splits rows, a fault can still name the file and line.

    >>> PlacedRow({"prompt": "hi"}, "rows.jsonl:3").place
    'rows.jsonl:3'
    """

    __slots__ = ("entry", "place")

    def __init__(self, row: Row, place: str = "", entry: int = 0) -> None:
        super().__init__(row)
        self.place = place
        self.entry = entry
        """Which of the sources in `data.train` it comes from."""


class RowData(LightningDataModule):
    """Rows as plain dictionaries, in batches that are lists; the stage makes tokens of them."""

    def __init__(
        self, batch_size: int = 8, validation_batch_size: int | None = None, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}; it must be at least 1")
        if validation_batch_size is not None and validation_batch_size < 1:
            raise UserError(f"data.validation_batch_size is {validation_batch_size}; it must be at least 1")
        if num_workers < 0:
            raise UserError(f"data.num_workers is {num_workers}; it must be at least 0")
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size or batch_size
        self.num_workers, self.seed = num_workers, seed
        self.train_rows: list[Row] | None = None
        self.validation_rows: list[Row] | None = None
        self.test_rows: list[Row] | None = None
        self.predict_rows: list[Row] | None = None

    def rows(self, split: str) -> list[Row] | None:
        """The rows of `train`, `validation`, `test` or `predict`; None where there are none."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Read and check everything that `stage` needs."""
        needed = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("predict",),
        }
        for split in needed[stage]:
            if getattr(self, f"{split}_rows") is None:
                setattr(self, f"{split}_rows", self.rows(split))

    def _loader(self, rows: list[Row] | None, batch_size: int, train: bool = False) -> Any:
        if not rows:
            return []
        whole = train and len(rows) >= batch_size
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=train,
            drop_last=whole,
            num_workers=self.num_workers,
            collate_fn=list,
        )

    def train_dataloader(self) -> Any:
        """Shuffled; the last batch is dropped if it is not full."""
        return self._loader(self.train_rows, self.batch_size, train=True)

    def val_dataloader(self) -> Any:
        """In the order of the file."""
        return self._loader(self.validation_rows, self.validation_batch_size)

    def test_dataloader(self) -> Any:
        """In the order of the file."""
        return self._loader(self.test_rows, self.validation_batch_size)

    def predict_dataloader(self) -> Any:
        """In the order of the file."""
        return self._loader(self.predict_rows, self.validation_batch_size)


class FileData(RowData):
    """Rows from files or the hub.

    Args:
        train: JSON lines, JSON, CSV (these also as .gz) or Parquet, a glob, a list of these, or a hub name
            (`name`, `name:config`, `name@split`). In Python also a `datasets.Dataset`, a DataFrame or a list of dictionaries.
        validation: held-out rows; without it `validation_fraction` of the training rows.
        test: for `test`; by default the validation rows. predict: for `predict`, likewise.
        columns: our name of a column: the file's name of it, where they differ.
        validation_fraction: split off the training rows if there is no validation file.
        batch_size: rows of an optimiser step's part; for policy optimisation the prompts of a rollout.
        validation_batch_size: by default as many.
        limit: read no more rows than this for each split, from its beginning; with `mix`, of each source.
        on_bad_row: stop, or leave the row out and count it.
        num_workers: processes that load rows.
        seed: of the split.
        streaming: read training rows when they are needed; memory does not depend on their number. Only the first thousand are
            checked before the run.
        steps_per_epoch: batches of an epoch; a streamed data set, whose length is not known, needs it or trainer.max_steps.
        shuffle_buffer: rows of a streamed file that are shuffled together; 1 keeps the order of the file.
        mix: weights of the sources that `train` lists, in the same order: [3, 1] takes three rows of the first for one of the
            second, whatever their sizes, and repeats the shorter.
    """

    required: tuple[str, ...] = ("prompt",)
    """Columns without which there is no row."""

    def __init__(
        self,
        train: Paths = None,
        validation: Paths = None,
        test: Paths = None,
        predict: Paths = None,
        columns: dict[str, str] | None = None,
        validation_fraction: float = 0.05,
        batch_size: int = 8,
        validation_batch_size: int | None = None,
        limit: int | None = None,
        on_bad_row: Literal["raise", "skip"] = "raise",
        num_workers: int = 0,
        seed: int = 0,
        streaming: bool = False,
        steps_per_epoch: int | None = None,
        shuffle_buffer: int = 10_000,
        mix: list[float] | None = None,
    ) -> None:
        super().__init__(batch_size, validation_batch_size, num_workers, seed)
        endless = limit is None and train is not None and any(map(is_endless, entries(train)))
        self.streaming, self.steps_per_epoch = streaming or endless, steps_per_epoch
        self.shuffle_buffer, self.mix = shuffle_buffer, mix
        check_options(self)
        if not 0 <= validation_fraction < 1:
            raise UserError(f"data.validation_fraction is {validation_fraction}; it must be at least 0 and below 1")
        if limit is not None and limit < 1:
            raise UserError(f"data.limit is {limit}; it must be at least 1, or null for all rows")
        self.sources = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.columns, self.validation_fraction = columns or {}, validation_fraction
        self.limit, self.on_bad_row = limit, on_bad_row
        self.report: dict[str, int] = {}
        self._whole: list[Row] | None = None
        self._held_out: set[str] = set()

    def setup(self, stage: str) -> None:
        """Read and check everything that `stage` needs; of a streamed training set the first rows."""
        if stage == "fit" and self.streaming:
            epoch_batches(self, self.trainer)
        super().setup(stage)

    def train_dataloader(self) -> Any:
        """Shuffled batches; a streamed, mixed or sized data set gives a loader that resumes by its own state."""
        if self.streaming or self.mix is not None or self.steps_per_epoch is not None:
            return train_loader(self, self.trainer)
        return super().train_dataloader()

    def row(self, row: Row) -> Row:
        """One row in the form that stages read.

        Raises:
            BadRow: what is wrong with it.
        """
        raise NotImplementedError

    def arranged(self, rows: list[Row]) -> list[Row]:
        """The rows of a split as stages read them, where that is not one by one."""
        return rows

    def rows(self, split: str) -> list[Row] | None:
        """See `RowData.rows`."""
        if self.streaming and (split == "train" or (split == "validation" and self.sources["validation"] is None)):
            return self._streamed(split)
        if split in ("train", "validation") and self.sources["validation"] is None:
            rows = self._whole = self._whole or self._read("train")
            if rows is None:
                raise UserError("data.train is not set; give a file, a glob or a hub name")
            held = max(1, round(self.validation_fraction * len(rows))) if self.validation_fraction else 0
            if split == "train" and held == len(rows):
                raise UserError(
                    f"data set {self.sources['train']}: rows {len(rows)}, held out {held}, left to learn from 0; "
                    "give more rows, a data.validation file, or data.validation_fraction: 0"
                )
            order = random.Random(self.seed).sample(range(len(rows)), len(rows))
            return [rows[i] for i in order[held:]] if split == "train" else [rows[i] for i in order[:held]] or None
        found = self._read(split)
        return found if found is not None else self.rows("validation") if split in ("test", "predict") else None

    def _streamed(self, split: str) -> list[Row] | None:
        """The checked rows of a streamed training set, or those of them that are held out."""
        if self._whole is None:
            self._whole = streamed_head(self)
            self._held_out = held_out_prompts(self, self._whole)
        rows = [row for row in self._whole if (prompt_key(row) in self._held_out) == (split == "validation")]
        return rows or None

    def accept(self, raw: Row, place: str, entry: int = 0) -> PlacedRow:
        """A raw row in the form that stages read.

        Raises:
            BadRow: what is wrong with it; the message begins with its place.
        """
        try:
            return PlacedRow(self.row(self._renamed(raw)), place, entry)
        except BadRow as error:
            raise BadRow(f"{place}: {error}") from error

    def accept_train(self, raw: Row, place: str) -> Row | None:
        """`accept`, of a streamed row; None if its prompt is held out."""
        row = self.accept(raw, place)
        return None if prompt_key(row) in self._held_out else row

    def tell_late(self, fault: str) -> None:
        """Stop at a bad row that is found during the run, or count it.

        Raises:
            UserError: `on_bad_row` is raise.
        """
        if self.on_bad_row == "raise":
            self.tell([fault], 0)
        self.report["bad_rows"] = self.report.get("bad_rows", 0) + 1
        if self.report["bad_rows"] <= SHOWN_FAULTS:
            print_once(f"data: skipped a bad row: {fault}")

    def teardown(self, stage: str) -> None:
        """Say how many bad rows a streamed data set had."""
        if self.streaming and stage == "fit" and (count := self.report.get("bad_rows", 0)) > SHOWN_FAULTS:
            print_once(f"data: skipped {count} bad rows, counted each time they were read")

    def _read(self, split: str) -> list[Row] | None:
        given = self.sources[split]
        if given is None:
            return None
        if split == "train":
            check_mix(self)
        rows: list[PlacedRow] = []
        faults: list[str] = []
        for source in read(given, self.limit):
            if len(rows) == self.limit and self.mix is None:
                break
            self.check_columns(source)
            faults += source.faults
            for raw, place in zip(source.rows, source.places, strict=True):
                try:
                    rows.append(self.accept(raw, place, source.entry))
                except BadRow as error:
                    faults.append(str(error))
        self.tell(faults, len(rows))
        if not rows:
            raise UserError(f"data set {given} is empty: no row to use")
        if self.mix is None or split != "train":
            return self.arranged(list[Row](rows[: self.limit]))
        groups = [[row for row in rows if row.entry == entry][: self.limit] for entry in range(len(self.mix))]
        return self.arranged([row for group in groups for row in group])

    def _renamed(self, row: Row) -> Row:
        theirs = set(self.columns.values())
        kept = {name: value for name, value in row.items() if name not in theirs}
        return {**kept, **{ours: row.get(their) for ours, their in self.columns.items()}}

    def check_columns(self, source: Source) -> None:
        """Refuse a source without a column that rows need.

        Raises:
            UserError: naming the column and the nearest that there is.
        """
        if not source.rows:
            return
        have = set().union(*(row.keys() for row in source.rows[:100]))
        for ours in dict.fromkeys((*self.columns, *self.required)):
            theirs = self.columns.get(ours, ours)
            if theirs not in have:
                hint = nearest(theirs, have)
                raise UserError(
                    f"data set {source.name} has no column {theirs!r}; it has: {', '.join(sorted(have))}; "
                    f"{hint + ' Say' if hint.startswith('did') else 'say'} which it is with data.columns: {{{ours}: …}}"
                )

    def tell(self, faults: list[str], good: int) -> None:
        """Stop at bad rows, or count and show them.

        Raises:
            UserError: `on_bad_row` is raise.
        """
        if not faults:
            return
        if self.on_bad_row == "raise":
            more = f" (and {len(faults) - 1} more bad rows)" if len(faults) > 1 else ""
            raise UserError(f"{faults[0]}{more}; mend the file, or set data.on_bad_row: skip")
        self.report["bad_rows"] = self.report.get("bad_rows", 0) + len(faults)
        shown = "; ".join(faults[:SHOWN_FAULTS])
        print_once(f"data: left out {len(faults)} bad rows and kept {good}: {shown}")

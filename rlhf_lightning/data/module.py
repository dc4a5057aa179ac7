"""Base classes of the data modules: sources, splits, faults of rows, loaders."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from rlhf_lightning.console import print_once
from rlhf_lightning.data import forms
from rlhf_lightning.data.formats import Context, context_of
from rlhf_lightning.data.messages import RESERVED, BadRow, UnusedRow
from rlhf_lightning.data.reading import Source, read
from rlhf_lightning.data.splits import count_duplicates, count_overlap, split_by_prompt
from rlhf_lightning.data.trees import COLUMNS as MESSAGE_COLUMNS
from rlhf_lightning.data.trees import trees
from rlhf_lightning.errors import UserError, nearest

Row = dict[str, Any]
Paths = str | list[str] | None
SHOWN_FAULTS = 3


class PlacedRow(dict[str, Any]):
    """A row that knows where it was read: whatever shuffles and splits rows, a fault can still name the file and line.

    >>> PlacedRow({"prompt": "hi"}, "rows.jsonl:3").place
    'rows.jsonl:3'
    """

    __slots__ = ("place",)

    def __init__(self, row: Row, place: str = "") -> None:
        super().__init__(row)
        self.place = place


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
        """Read and check the rows that `stage` needs."""
        needed = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("predict",),
        }
        for split in needed[stage]:
            if getattr(self, f"{split}_rows") is None:
                setattr(self, f"{split}_rows", self.rows(split))
        self.say_duplicates()

    def say_duplicates(self) -> None:
        """Say once how many rows are there twice."""

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
            (`name`, `name:config`, `name@split`).
        validation: held-out rows; without it `validation_fraction` of the training rows, all rows of a prompt together.
        test: for `test`; by default the validation rows. predict: for `predict`, likewise.
        columns: our name of a column: the file's name of it, where they differ.
        remove_columns: columns of the file that are dropped, and not named as unused.
        validation_fraction: split off the training rows if there is no validation file.
        batch_size: rows of an optimiser step's part; for policy optimisation the prompts of a rollout.
        validation_batch_size: by default as many.
        limit: read no more rows than this for each split, from its beginning.
        on_bad_row: stop, or skip the row and count it.
        on_too_long: truncate rows that are longer than the stage's max_length (or the model's context), or drop and count them.
        tools: for the chat template, of conversations whose row has no column `tools`.
        chat_template_kwargs: arguments of the chat template, such as enable_thinking; the row's column replaces single ones.
        num_workers: processes that load rows.
        seed: of the split.
    """

    required: tuple[str, ...] = ("prompt",)
    """Columns without which there is no row."""
    form: str = ""
    """The function of `rlhf_lightning.data.forms` that reads public data forms; none by default."""

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
        remove_columns: list[str] | None = None,
        on_too_long: Literal["truncate", "drop"] = "truncate",
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, validation_batch_size, num_workers, seed)
        if not 0 <= validation_fraction < 1:
            raise UserError(f"data.validation_fraction is {validation_fraction}; it must be at least 0 and below 1")
        if limit is not None and limit < 1:
            raise UserError(f"data.limit is {limit}; it must be at least 1, or null for all rows")
        if taken := sorted(set(RESERVED) & set(chat_template_kwargs or {})):
            raise UserError(f"data.chat_template_kwargs has {taken[0]!r}, which the library sets itself; remove it")
        self.sources = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.columns, self.validation_fraction = columns or {}, validation_fraction
        self.limit, self.on_bad_row, self.on_too_long = limit, on_bad_row, on_too_long
        self.remove_columns, self.tools, self.chat_template_kwargs = remove_columns or [], tools, chat_template_kwargs
        self.report: dict[str, int] = {}
        self.read_columns: set[str] = set()
        """Columns of the files that rows were made of."""
        self._whole: list[Row] | None = None
        self._counted = False

    def row(self, row: Row) -> Row:
        """Convert one row to the form that stages read.

        Raises:
            BadRow: what is wrong with it.
        """
        raise NotImplementedError

    def arranged(self, rows: list[Row]) -> list[Row]:
        """Arrange the rows of a split, where a stage's row is not one row of the file."""
        return rows

    def context(self, row: Row) -> Context:
        """Read the system prompt, tools and template arguments of a row, and those of the config."""
        return context_of(row, self.tools, self.chat_template_kwargs)

    def rows(self, split: str) -> list[Row] | None:
        """Read the rows of a split; see `RowData.rows`."""
        if split in ("train", "validation") and self.sources["validation"] is None:
            rows = self._whole = self._whole or self._read("train")
            if rows is None:
                raise UserError("data.train is not set; give a file, a glob or a hub name")
            train, held = split_by_prompt(rows, self.validation_fraction, self.seed)
            if split == "train" and not train:
                raise UserError(
                    f"data set {self.sources['train']}: rows {len(rows)}, held out {len(held)}, left to learn from 0 (rows of "
                    "one prompt stay together); give more rows, a data.validation file, or data.validation_fraction: 0"
                )
            return train if split == "train" else held or None
        found = self._read(split)
        return found if found is not None else self.rows("validation") if split in ("test", "predict") else None

    def say_duplicates(self) -> None:
        """Say once how many training rows are there twice, and how many held-out prompts are learned from."""
        if self.train_rows is None or self._counted:
            return
        self._counted = True
        twice = count_duplicates(self.train_rows)
        both = count_overlap(self.train_rows, self.validation_rows or [])
        self.report |= {name: count for name, count in (("duplicates", twice), ("overlap", both)) if count}
        if twice:
            print_once(f"data: {twice} of {len(self.train_rows)} training rows are duplicates of earlier ones")
        if both:
            print_once(
                f"data: the prompts of {both} of {len(self.validation_rows or [])} validation rows are trained on too"
            )

    def _read(self, split: str) -> list[Row] | None:
        given = self.sources[split]
        if given is None:
            return None
        rows: list[Row] = []
        faults: list[str] = []
        unused: dict[str, int] = {}
        for source in read(given, self.limit):
            if self.limit is not None and len(rows) >= self.limit:
                break
            source = _joined(source)
            self._check_columns(source)
            faults += source.faults
            for raw, place in zip(source.rows, source.places, strict=True):
                try:
                    rows += [PlacedRow(self.row(each), place) for each in self._expanded(self._renamed(raw))]
                except BadRow as error:
                    faults.append(f"{place}: {error}")
                except UnusedRow as reason:
                    unused[str(reason)] = unused.get(str(reason), 0) + 1
        self._tell(faults, len(rows), unused)
        if not rows:
            raise UserError(f"data set {given} is empty: no row to use")
        return self.arranged(rows[: self.limit])

    def _expanded(self, row: Row) -> list[Row]:
        return getattr(forms, self.form)(row) if self.form else [row]

    def _renamed(self, row: Row) -> Row:
        theirs = set(self.columns.values())
        dropped = theirs | set(self.remove_columns)
        kept = {name: value for name, value in row.items() if name not in dropped}
        renamed = {**kept, **{ours: row.get(their) for ours, their in self.columns.items()}}
        if self.columns.get("prompt") == "instruction":  # Alpaca's, whose input belongs to it
            renamed["prompt"] = forms.instruction(renamed["prompt"], kept)
        return renamed

    def _check_columns(self, source: Source) -> None:
        if not source.rows:
            return
        have = set().union(*(row.keys() for row in source.rows[:100]))
        self.read_columns |= forms.read_columns(self.form, have, self.columns)
        ours_there = (have - set(self.remove_columns)) | set(self.columns)
        known = forms.is_known(self.form, ours_there, source.rows[0])
        for ours in dict.fromkeys((*self.columns, *(() if known else self.required))):
            theirs = self.columns.get(ours, ours)
            if theirs not in have:
                hint = nearest(theirs, have)
                raise UserError(
                    f"data set {source.name} has no column {theirs!r}; it has: {', '.join(sorted(have))}; "
                    f"{hint + ' Say' if hint.startswith('did') else 'say'} which it is with data.columns: {{{ours}: …}}"
                )

    def _tell(self, faults: list[str], good: int, unused: dict[str, int]) -> None:
        for reason, count in unused.items():
            self.report[reason] = self.report.get(reason, 0) + count
            print_once(f"data: {count} rows are not used and {good} are: {reason}")
        if not faults:
            return
        if self.on_bad_row == "raise":
            more = f" (and {len(faults) - 1} more bad rows)" if len(faults) > 1 else ""
            raise UserError(f"{faults[0]}{more}; fix the file, or set data.on_bad_row: skip")
        self.report["bad_rows"] = self.report.get("bad_rows", 0) + len(faults)
        shown = "; ".join(faults[:SHOWN_FAULTS])
        print_once(f"data: skipped {len(faults)} bad rows and kept {good}: {shown}")


def _joined(source: Source) -> Source:
    """The source without columns of nulls; rows of one message each, as Open Assistant has them, as trees."""
    filled = {name for row in source.rows for name, value in row.items() if value is not None}
    rows = [{name: value for name, value in row.items() if name in filled} for row in source.rows]
    source = Source(source.name, rows, source.places, source.faults)
    if rows and set(MESSAGE_COLUMNS) - {"parent_id"} <= filled and "parent_id" in source.rows[0].keys() | filled:
        found, places, faults = trees(rows, source.places)
        return Source(source.name, found, places, source.faults + faults)
    return source

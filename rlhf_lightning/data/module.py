"""The base of the data modules that read files: sources, splits, faults of rows, streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning.console import print_once
from rlhf_lightning.data import forms
from rlhf_lightning.data.formats import Context, context_of
from rlhf_lightning.data.messages import RESERVED, BadRow, UnusedRow
from rlhf_lightning.data.mixing import (
    check_mix,
    check_options,
    epoch_batches,
    held_out_prompts,
    streamed_head,
    train_loader,
)
from rlhf_lightning.data.objects import is_endless
from rlhf_lightning.data.reading import Source, entries, read
from rlhf_lightning.data.row_data import Row, RowData
from rlhf_lightning.data.splits import count_duplicates, count_overlap, prompt_key, split_by_prompt
from rlhf_lightning.data.tables import PlacedRow
from rlhf_lightning.data.trees import joined
from rlhf_lightning.errors import UserError, nearest

if TYPE_CHECKING:
    Paths = str | Iterable[Any] | None  # Python takes rows in memory as well
else:
    Paths = str | list[str] | None  # the types that a config can hold
SHOWN_FAULTS = 3


class FileData(RowData):
    """Rows from files or the hub.

    Args:
        train: JSON lines, JSON, CSV (these also as .gz) or Parquet, a glob, a list of these, or a hub name
            (`name`, `name:config`, `name@split`). In Python also a `datasets.Dataset`, a DataFrame or a list of dictionaries.
        validation: held-out rows; without it `validation_fraction` of the training rows, all rows of a prompt together.
        test: for `test`; by default the validation rows. predict: for `predict`, likewise.
        columns: our name of a column: the file's name of it, where they differ.
        remove_columns: columns of the file that are dropped, and not named as unused.
        validation_fraction: split off the training rows if there is no validation file.
        batch_size: rows of an optimiser step, for policy optimisation prompts of a rollout, of all processes together;
            trainer.accumulate_grad_batches joins as many batches into one.
        validation_batch_size: by default as many.
        limit: read no more rows than this for each split, from its beginning; with `mix`, of each source.
        on_bad_row: stop, or skip the row and count it.
        on_too_long: truncate rows that are longer than the stage's max_length (or the model's context), or drop and count them.
        tools: for the chat template, of conversations whose row has no column `tools`.
        chat_template_kwargs: arguments of the chat template, such as enable_thinking; the row's column replaces single ones.
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
        self.unused: dict[str, int] = {}
        """Rows that are of no use to this kind of data, by reason."""
        self._counted = False
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
        if self.streaming and (split == "train" or (split == "validation" and self.sources["validation"] is None)):
            return self._streamed(split)
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

    def _streamed(self, split: str) -> list[Row] | None:
        """Return the checked rows of a streamed training set, or those of them that are held out."""
        if type(self).arranged is not FileData.arranged:
            raise UserError(
                f"{type(self).__name__} groups rows of the whole file, which a stream never has; set data.streaming: false"
            )
        if self._whole is None:
            self._whole = streamed_head(self)
            self._held_out = held_out_prompts(self, self._whole)
        rows = [row for row in self._whole if (prompt_key(row) in self._held_out) == (split == "validation")]
        return rows or None

    def accept(self, raw: Row, place: str, entry: int = 0) -> list[PlacedRow]:
        """Make the rows that stages read from a raw row; none of a row that is not used.

        Raises:
            BadRow: what is wrong with it; the message begins with its place.
        """
        try:
            return [PlacedRow(self.row(each), place, entry) for each in self._expanded(self._renamed(raw))]
        except BadRow as error:
            raise BadRow(f"{place}: {error}") from error
        except UnusedRow as reason:
            self.unused[str(reason)] = self.unused.get(str(reason), 0) + 1
            return []

    def accept_train(self, raw: Row, place: str) -> list[Row]:
        """Make rows from a streamed raw row, without those whose prompt is held out."""
        filled = {name: value for name, value in raw.items() if value is not None}
        return [row for row in self.accept(filled, place) if prompt_key(row) not in self._held_out]

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
        if split == "train":
            check_mix(self)
        rows: list[PlacedRow] = []
        faults: list[str] = []
        for source in read(given, self.limit):
            if self.limit is not None and len(rows) >= self.limit and self.mix is None:
                break
            entry, source = source.entry, joined(source)
            self.check_columns(source)
            faults += source.faults
            for raw, place in zip(source.rows, source.places, strict=True):
                try:
                    rows += self.accept(raw, place, entry)
                except BadRow as error:
                    faults.append(str(error))
        self.tell(faults, len(rows))
        if not rows:
            raise UserError(f"data set {given} is empty: no row to use")
        if self.mix is None or split != "train":
            return self.arranged(list[Row](rows[: self.limit]))
        groups = [[row for row in rows if row.entry == entry][: self.limit] for entry in range(len(self.mix))]
        return self.arranged([row for group in groups for row in group])

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

    def check_columns(self, source: Source) -> None:
        """Refuse a source without a column that rows need.

        Raises:
            UserError: naming the column and the nearest that there is.
        """
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

    def tell(self, faults: list[str], good: int) -> None:
        """Stop at bad rows, or count and show them; say how many rows are of no use.

        Raises:
            UserError: a row is bad and `on_bad_row` is raise.
        """
        unused, self.unused = self.unused, {}
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

"""`metrics.csv`: one row per logged step, beside any other logger."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.io import atomic_write

Row = dict[str, Any]


class MetricsFile(Logger):
    """Append to `<folder>/metrics.csv`; a new column rewrites the file, and a resumed run first drops the rows it will repeat.

    Memory holds only the last row, and further metrics of a step rewrite only that row, so the cost of a step is constant.

    Args:
        folder: of the run.
        keep: keep the rows of the file, for a subcommand that measures a trained model.
    """

    def __init__(self, folder: Path, keep: bool = False) -> None:
        super().__init__()
        self.folder, self.path, self.keep = Path(folder), Path(folder) / "metrics.csv", keep
        self.columns: list[str] = []
        self.last: Row | None = None
        """The last row, which takes further metrics of its step; None before the first."""
        self.place = 0
        """Offset of the last row in the file, in bytes."""

    name = "metrics"
    version = ""

    @property
    def log_dir(self) -> str:
        """Return the folder of the run."""
        return str(self.folder)

    root_dir = save_dir = log_dir

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Skip hyper-parameters, which are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one row; metrics of the same step share it."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        if self.keep:
            self._rewrite(self._header(), self.rows())
        if self.last is None or not self.path.exists():
            self._rewrite(list(values), [{"step": step, **values}])
            return
        same = self.last["step"] == step
        row = {**self.last, **values} if same else {"step": step, **values}
        new = [name for name in values if name not in self.columns]
        if new:
            earlier = _without_last(self.rows()) if same else self.rows()
            self._rewrite([*self.columns, *new], chain(earlier, [row]))
        else:
            self._write(row, self.place if same else self.path.stat().st_size)

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Drop the rows after a step, for a run that resumes there."""
        if self.path.is_file():
            self._rewrite(self._header(), (row for row in self.rows() if row["step"] <= step))

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the file as text, with `step` as an integer; a truncated last row is skipped."""
        if self.path.is_file():
            with open(self.path, encoding="utf-8", newline="") as file:
                for row in csv.DictReader(line for line in file if line.endswith("\n")):
                    yield {**row, "step": int(row["step"])}

    def _header(self) -> list[str]:
        if not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8", newline="") as file:
            return [name for name in next(csv.reader(file), []) if name != "step"]

    def _rewrite(self, columns: list[str], rows: Iterable[Row]) -> None:
        self.keep, self.columns, self.last = False, columns, None
        atomic_write(self.path, lambda partial: self._write_all(partial, rows))

    def _write_all(self, path: Path, rows: Iterable[Row]) -> None:
        with open(path, "wb") as file:
            file.write(self._line({name: name for name in ["step", *self.columns]}))
            for row in rows:
                self.last, self.place = row, file.tell()
                file.write(self._line(row))

    def _write(self, row: Row, place: int) -> None:
        """Write a row at the end of the file, or over its last row."""
        with open(self.path, "r+b") as file:
            file.seek(place)
            file.truncate()
            file.write(self._line(row))
        self.last, self.place = row, place

    def _line(self, row: Row) -> bytes:
        text = StringIO(newline="")
        csv.DictWriter(text, ["step", *self.columns]).writerow(_shown(row))
        return text.getvalue().encode()


def _without_last(rows: Iterator[Row]) -> Iterator[Row]:
    held = next(rows, None)
    for row in rows:
        assert held is not None
        yield held
        held = row


def _shown(row: Row) -> Row:
    return {name: value if not isinstance(value, float) or value == value else "" for name, value in row.items()}

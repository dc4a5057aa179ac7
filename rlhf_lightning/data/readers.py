"""Windows of rows from files, the hub and memory: read in order, resumed at a cursor, rows fetched one by one.

A reader of a plain file keeps places, byte offsets, and not rows. A reader of Parquet, a compressed file or a stream, which
cannot go back, keeps the rows of one window.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.data.messages import BadRow
from rlhf_lightning.data.objects import is_iterable_only, label, plain, row_getter, undecoded
from rlhf_lightning.data.reading import expanded, hub_data, suffix_of
from rlhf_lightning.data.tables import check_names, checked_row, parse_json_line, without_nulls
from rlhf_lightning.errors import UserError

Row = dict[str, Any]
Cursor = Any
"""Where a window begins: numbers, or the state of a datasets.IterableDataset; plain enough for a checkpoint."""


class Reader(ABC):
    """Read the rows of one file, hub data set or object in windows."""

    name: str

    @abstractmethod
    def window(self, cursor: Cursor | None, size: int) -> tuple[list[Any], Cursor]:
        """Return the places of up to `size` rows and the cursor behind them.

        Args:
            cursor: of the window before; None begins with the first row.
            size: rows at most; an empty list is the end.
        """

    @abstractmethod
    def row(self, place: Any) -> tuple[Row, str]:
        """Return a row of the current window, and its name for messages.

        Raises:
            BadRow: it cannot be read; the message begins with its name.
        """


class LineReader(Reader):
    """Read JSON lines; a place is a line number, an offset and a length in bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.compressed = path.suffix == ".gz"
        self._file: IO[bytes] | None = None

    @property
    def file(self) -> IO[bytes]:
        """The file, opened at first use."""
        if self._file is None:
            self._file = gzip.open(self.path) if self.compressed else open(self.path, "rb")  # type: ignore[assignment]  # noqa: SIM115
        assert self._file is not None
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def window(self, cursor: Cursor | None, size: int) -> tuple[list[Any], Cursor]:
        """Find the next lines that are not blank."""
        offset, number = cursor or self.first()
        self.file.seek(offset)
        places: list[Any] = []
        while len(places) < size and (record := self.record()):
            number += 1
            if record.strip():
                places.append((number, record if self.compressed else offset, len(record)))
            offset += len(record)
        return places, (offset, number)

    def first(self) -> tuple[int, int]:
        """Return the offset of the first row and the number before it."""
        return 0, 0

    def record(self) -> bytes:
        """Return the bytes of the next row; none at the end of the file."""
        return self.file.readline()

    def row(self, place: Any) -> tuple[Row, str]:
        """Read and parse it."""
        number, found, length = place
        if not self.compressed:
            self.file.seek(found)
            found = self.file.read(length)
        return self.parse(found, number)

    def parse(self, record: bytes, number: int) -> tuple[Row, str]:
        """Return the row of a line."""
        place = f"{self.path}:{number}"
        return parse_json_line(record, place, number), place


class CsvReader(LineReader):
    """Read CSV, every cell as text; a place is a row, which may have several lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        csv.field_size_limit(sys.maxsize)  # a document is longer than csv's default of 128 KiB
        self.columns: list[str] = []

    def first(self) -> tuple[int, int]:
        """Return the offset behind the header."""
        self.file.seek(0)
        header = self.record()
        self.columns = next(csv.reader(io.StringIO(header.decode("utf-8-sig"), newline="")), [])
        check_names(self.path, self.columns)
        return len(header), 0

    def record(self) -> bytes:
        """Return the lines of the next row: as many as it takes to close a quoted cell."""
        lines: list[bytes] = []

        def following() -> Iterator[str]:
            while line := self.file.readline():
                lines.append(line)
                yield line.decode("latin-1")  # quotes, commas and ends of lines are bytes of their own in UTF-8

        next(csv.reader(following()), None)
        return b"".join(lines)

    def parse(self, record: bytes, number: int) -> tuple[Row, str]:
        """Return the row, one text a column."""
        place = f"{self.path}, row {number}"
        if not self.columns:
            offset = self.file.tell()
            self.first()
            self.file.seek(offset)
        try:
            cells = next(csv.reader(io.StringIO(record.decode("utf-8"), newline="")), [])
        except UnicodeDecodeError as error:
            raise BadRow(f"{place}: not UTF-8 text (byte {error.start + 1} of the row)") from error
        if len(cells) != len(self.columns):
            raise BadRow(f"{place}: expected {len(self.columns)} cells, found {len(cells)}")
        return checked_row({name: cell or None for name, cell in zip(self.columns, cells, strict=True)}, place), place


class ForwardReader(Reader):
    """Read rows in their order alone; a place is (number, row)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._position: Cursor | None = None
        self._rows: Iterator[Row] = iter(())

    @abstractmethod
    def rows_from(self, cursor: Cursor | None) -> Iterator[Row]:
        """Return the rows behind a cursor."""

    @abstractmethod
    def position(self, number: int) -> Cursor:
        """Return the cursor behind row `number`, the last that `rows_from` gave."""

    def number(self, cursor: Cursor) -> int:
        """Return how many rows are before a cursor."""
        return int(cursor)

    def window(self, cursor: Cursor | None, size: int) -> tuple[list[Any], Cursor]:
        """Take the next rows; a cursor other than the reader's own position opens the data again."""
        if cursor is None or cursor is not self._position:
            self._rows = self.rows_from(cursor)
        before = 0 if cursor is None else self.number(cursor)
        rows = list(islice(self._rows, size))
        self._position = self.position(before + len(rows))
        return list(enumerate(rows, before + 1)), self._position

    def row(self, place: Any) -> tuple[Row, str]:
        """Return it."""
        number, row = place
        named = {str(name): without_nulls(plain(value)) for name, value in row.items()}
        return checked_row(named, f"{self.name}, row {number}"), f"{self.name}, row {number}"


class ParquetReader(ForwardReader):
    """Read Parquet a batch at a time; a cursor is a row number, found again through the sizes of the row groups."""

    def rows_from(self, cursor: Cursor | None) -> Iterator[Row]:
        """Skip whole row groups, then rows of one."""
        from pyarrow.parquet import ParquetFile

        try:
            file = ParquetFile(self.name)
        except Exception as error:
            raise UserError(
                f"data file {self.name} is no good PARQUET: {' '.join(str(error).split())[:200]}"
            ) from error
        skipped, group = int(cursor or 0), 0
        while group < file.num_row_groups and skipped >= (size := file.metadata.row_group(group).num_rows):
            skipped, group = skipped - size, group + 1
        groups = list(range(group, file.num_row_groups))
        batches = file.iter_batches(batch_size=256, row_groups=groups) if groups else iter(())
        return islice((row for batch in batches for row in batch.to_pylist()), skipped, None)

    def position(self, number: int) -> Cursor:
        """Return the number of rows that were read."""
        return number


class StreamReader(ForwardReader):
    """Read a datasets.IterableDataset, whose own state is the cursor, or another iterable, which is skipped through."""

    def __init__(self, name: str, data: Any) -> None:
        super().__init__(name)
        data = undecoded(data)
        self.data = (
            data.with_format(None) if hasattr(data, "with_format") else data
        )  # whose state is that of its beginning
        self.stateful = hasattr(data, "state_dict") and hasattr(data, "load_state_dict")
        self.start = copy.deepcopy(self.data.state_dict()) if self.stateful else None

    def rows_from(self, cursor: Cursor | None) -> Iterator[Row]:
        """Restore the state, or skip rows."""
        if self.stateful:
            self.data.load_state_dict(copy.deepcopy(cursor["state"] if cursor else self.start))
            return iter(self.data)
        return islice(iter(self.data), cursor["row"] if cursor else 0, None)

    def position(self, number: int) -> Cursor:
        """Return the row number and the data set's own state."""
        return {"row": number, "state": copy.deepcopy(self.data.state_dict()) if self.stateful else None}

    def number(self, cursor: Cursor) -> int:
        """Return how many rows are before a cursor."""
        return int(cursor["row"])


class MemoryReader(Reader):
    """Read a data set in memory, or mapped into it; a place is a row number."""

    def __init__(self, data: Any) -> None:
        self.name = label(data)
        self.count, self.get = row_getter(data)

    def window(self, cursor: Cursor | None, size: int) -> tuple[list[Any], Cursor]:
        """Return the next numbers."""
        first = int(cursor or 0)
        after = min(first + size, self.count)
        return list(range(first, after)), after

    def row(self, place: Any) -> tuple[Row, str]:
        """Return the row of a number."""
        name = f"{self.name}, row {place + 1}"
        return checked_row(self.get(place), name), name


def readers(source: Any) -> list[Reader]:
    """Return a reader for each file of a path or glob, or the reader of a hub name or an object.

    Raises:
        UserError: it is missing, or of a kind that cannot be streamed.
    """
    if not isinstance(source, str):
        return [StreamReader(label(source), source) if is_iterable_only(source) else MemoryReader(source)]
    return [_reader(name) for name in expanded(source)]


def _reader(name: str) -> Reader:
    path = Path(name)
    if not path.is_file():
        return StreamReader(name, hub_data(name, streaming=True))
    kind = suffix_of(path)
    if kind == ".json":
        raise UserError(
            f"data file {name} is one JSON array, which cannot be streamed; convert it to JSON lines (.jsonl, an object a line), "
            "or set data.streaming: false"
        )
    return ParquetReader(name) if kind == ".parquet" else CsvReader(path) if kind == ".csv" else LineReader(path)

"""Rows of one file: CSV, JSON, JSON lines and Parquet, with the types that the file has."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.data.messages import BadRow
from rlhf_lightning.errors import UserError

LONGEST_CELL = 2**31 - 1


@dataclass
class Source:
    """Rows of one file or hub data set, and the place of each."""

    name: str
    rows: list[dict[str, Any]]
    places: list[str] = field(default_factory=list)
    """`file:line` or `name, row n` of each row."""
    faults: list[str] = field(default_factory=list)
    """One message for each row that could not be read."""
    entry: int = 0
    """The index of the source among those that `data.train` lists; a glob is one."""

    def add(self, row: Any, place: str) -> None:
        """Add a row that JSON gave, or a fault."""
        try:
            self.rows.append(checked_row(row, place))
            self.places.append(place)
        except BadRow as error:
            self.faults.append(str(error))


class PlacedRow(dict[str, Any]):
    """A row with the place that it was read from, so that a message can name file and line after shuffles and splits.

    >>> PlacedRow({"prompt": "hi"}, "rows.jsonl:3").place
    'rows.jsonl:3'
    """

    __slots__ = ("entry", "place")

    def __init__(self, row: dict[str, Any], place: str = "", entry: int = 0) -> None:
        super().__init__(row)
        self.place = place
        self.entry = entry
        """The index of its source among those that `data.train` lists."""


def unreadable_text(row: dict[str, Any]) -> str | None:
    """Say which column has half of a surrogate pair, which is no text that a tokenizer reads; None where all is text."""
    for name, value in row.items():
        try:
            json.dumps([name, value], ensure_ascii=False, default=repr).encode()
        except UnicodeEncodeError:
            return f"column {name!a} is not Unicode text: it has half of a surrogate pair (\\ud800 to \\udfff)"
        except (RecursionError, ValueError):
            return f"column {name!a} is nested too deeply"
    return None


def json_lines(path: Path, limit: int | None) -> Source:
    """Read an object per line."""
    source = Source(str(path), [])
    for number, line in _lines(path):
        if len(source.rows) == limit:
            break
        place = f"{path}:{number}"
        try:
            source.rows.append(parse_json_line(line, place, number))
            source.places.append(place)
        except BadRow as error:
            source.faults.append(str(error))
    return source


def parse_json_line(line: bytes, place: str, number: int) -> dict[str, Any]:
    """Return the row of a line of a file; the first may begin with a byte order mark.

    Raises:
        BadRow: the line is no object of readable text; the message begins with its place.
    """
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise BadRow(f"{place}: not UTF-8 text (byte {error.start + 1} of the line)") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{place}: not JSON: {_json_fault(error)}") from error
    return checked_row(row, place)


def checked_row(row: Any, place: str) -> dict[str, Any]:
    """Return a row that is an object of readable text.

    Raises:
        BadRow: it is none; the message begins with its place.
    """
    if not isinstance(row, dict):
        raise BadRow(f"{place}: expected an object with columns, found {type(row).__name__}")
    if fault := unreadable_text(row):
        raise BadRow(f"{place}: {fault}")
    return row


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _text(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read().decode("utf-8-sig")


def json_file(path: Path, limit: int | None) -> Source:
    """Read a list of objects, an object that holds one such list, or an object per line.

    Raises:
        UserError: the file is none of these.
    """
    text = _text(path)
    if not text.strip():
        return Source(str(path), [])
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and error.lineno > 1:
            return json_lines(path, limit)
        raise UserError(f"data file {path} is no good JSON: {_json_fault(error)}") from error
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        found = lists[0] if len(found) == 1 and lists else [found]
    if not isinstance(found, list):
        raise UserError(f"data file {path} must hold a list of objects, found {type(found).__name__}")
    source = Source(str(path), [])
    for number, row in enumerate(found[:limit], 1):
        source.add(row, f"{path}, row {number}")
    return source


def csv_file(path: Path, limit: int | None) -> Source:
    """Read rows of text: a cell is what the file says, and nothing where it is empty.

    Raises:
        UserError: a name of a column is missing or there twice, or a quoted cell does not end.
    """
    csv.field_size_limit(LONGEST_CELL)
    source = Source(str(path), [])
    with io.StringIO(_text(path), newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = next((cells for cells in reader if cells), [])
            check_names(path, names)
            for number, cells in enumerate((cells for cells in reader if cells), 1):
                if len(source.rows) == limit:
                    break
                place = f"{path}, row {number}"
                if len(cells) != len(names):
                    source.faults.append(
                        f"{place} (line {reader.line_num}): expected {len(names)} cells, found {len(cells)}"
                    )
                    continue
                source.add({name: cell or None for name, cell in zip(names, cells, strict=True)}, place)
        except csv.Error as error:
            raise UserError(f"data file {path} is no good CSV: line {reader.line_num}: {error}") from error
    return source


def check_names(path: Path, names: list[str]) -> None:
    """Refuse a CSV file whose header has a name twice.

    Raises:
        UserError: naming the column.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"data file {path} is no good CSV: the column {twice!r} is there twice")


def parquet_file(path: Path, limit: int | None) -> Source:
    """Read rows of Parquet; within a column of structures what is null is not there.

    Raises:
        UserError: the file is no Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.stat().st_size:
        return Source(str(path), [])
    try:
        table = pyarrow.parquet.ParquetFile(path)
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        return numbered(str(path), islice(rows, limit))
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise UserError(f"data file {path} is no good PARQUET: {' '.join(str(error).split())[:200]}") from error


def numbered(name: str, rows: Iterable[dict[str, Any]]) -> Source:
    """Rows of typed columns, where nulls within structures only say that other rows have the key."""
    source = Source(name, [])
    for number, row in enumerate(rows, 1):
        source.add({key: without_nulls(value) for key, value in row.items()}, f"{name}, row {number}")
    return source


def without_nulls(value: Any) -> Any:
    """Remove the keys of structures that are null, at every depth.

    >>> without_nulls([{"role": "user", "tool_calls": None}])
    [{'role': 'user'}]
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value

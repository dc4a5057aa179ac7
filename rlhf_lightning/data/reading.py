"""Reading rows from files and the hub; a bad row is named by its file and line."""

from __future__ import annotations

import glob
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.data.formats import BadRow
from rlhf_lightning.data.objects import first_rows, is_rows, label
from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.session import named_object

SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet")


@dataclass
class Source:
    """Rows of one file or hub data set, and where each of them stands."""

    name: str
    rows: list[dict[str, Any]]
    places: list[str] = field(default_factory=list)
    """`file:line` or `name, row n` of each row."""
    faults: list[str] = field(default_factory=list)
    """One message for each row that could not be read."""
    entry: int = 0
    """Which of the sources in `data.train` it comes from: a glob is one."""


def entries(source: Any, key: str = "data.train") -> list[Any]:
    """The sources that a value of `data.train` lists, each a path, a glob, a hub name or a data set in memory."""
    source = named_object(source, key)
    return [source] if isinstance(source, str) or is_rows(source) else [named_object(each, key) for each in source]


def read(source: Any, limit: int | None = None) -> Iterator[Source]:
    """Every source of a path, a glob, a hub name (`name`, `name:config`, `name@split`), a data set in memory, or a list of these.

    Args:
        source: one or several of them.
        limit: rows to read of each, from the beginning; None reads all.

    Raises:
        UserError: a file is missing, or cannot be read at all.
    """
    for entry, given in enumerate(entries(source)):
        found = (
            (_read_one(path, limit) for path in expanded(given))
            if isinstance(given, str)
            else [_in_memory(given, limit)]
        )
        for each in found:
            each.entry = entry
            yield each


def _in_memory(rows: Any, limit: int | None) -> Source:
    found = list(first_rows(rows, limit))
    return Source(label(rows), found, [f"{label(rows)}, row {i + 1}" for i in range(len(found))])


def expanded(name: str) -> list[str]:
    """Return the files of a path or a glob; a hub name as it is.

    Raises:
        UserError: there is no such file.
    """
    name = os.path.expanduser(name)
    if Path(name).is_file():
        return [name]
    if any(mark in name for mark in "*?["):
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            raise UserError(f"no file matches {name!r}")
        return found
    path = Path(name)
    if path.is_dir():
        raise UserError(f"data file {name} is a folder; give a file of it, or a glob such as {path / '*.jsonl'}")
    if _suffix(path) or name.startswith((".", "/")):
        names = [p.name for p in path.parent.glob("*") if _suffix(p)]
        nothing = "no data file in" if path.parent.is_dir() else "no folder"
        hint = nearest(path.name, names) if names else f"there is {nothing} {path.parent}"
        raise UserError(f"data file {name} is not there; {hint}")
    return [name]


def _suffix(path: Path) -> str:
    """The kind of a file, without the .gz; nothing of a kind that is not read."""
    suffix = _ending(path)
    return suffix.removesuffix(".gz") if suffix in SUFFIXES else ""


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix + ".gz" if path.suffix == ".gz" else path.suffix


def suffix_of(path: Path) -> str:
    """Return the kind of a file, without the .gz.

    Raises:
        UserError: it is none that is read.
    """
    if suffix := _suffix(path):
        return suffix
    raise UserError(f"data file {path}: unknown kind {_ending(path)!r}; expected one of: {', '.join(SUFFIXES)}")


def _read_one(name: str, limit: int | None) -> Source:
    path = Path(name)
    if not path.is_file():
        return _from_hub(name, limit)
    suffix = suffix_of(path)
    try:
        return _json_lines(path, limit) if suffix == ".jsonl" else _whole(path, suffix, limit)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"data file {name} cannot be read: {error}") from error


def _json_lines(path: Path, limit: int | None) -> Source:
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
        BadRow: it is none; the message begins with its place.
    """
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise BadRow(f"{place}: not UTF-8 text (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"{place}: not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise BadRow(f"{place}: expected an object with columns, found {type(row).__name__}")
    return row


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _whole(path: Path, suffix: str, limit: int | None) -> Source:
    import datasets

    kind = suffix[1:]
    if not path.stat().st_size:
        return Source(str(path), [])
    try:
        with _quiet(datasets):
            found = datasets.load_dataset(kind, data_files=str(path), split="train")
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        if "corresponds to no data" in reason:
            return Source(str(path), [])
        raise UserError(f"data file {path} is no good {kind.upper()}: {reason}") from error
    rows = [dict(row) for row in islice(found, limit)]
    # not lines: a quoted cell of CSV may have several
    return Source(str(path), rows, [f"{path}, row {i + 1}" for i in range(len(rows))])


def _from_hub(name: str, limit: int | None) -> Source:
    try:
        data = hub_data(name, streaming=limit is not None)  # else all of it would be downloaded
    except UserError:  # without a network a data set of the cache can be loaded, and not streamed
        data = hub_data(name)
    rows = [dict(row) for row in islice(data, limit)]
    return Source(name, rows, [f"{name}, row {i + 1}" for i in range(len(rows))])


def hub_data(name: str, streaming: bool = False) -> Any:
    """Return a data set of the hub.

    Args:
        name: `name`, `name:config`, `name@split`.
        streaming: open it instead of downloading it.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    path, _, split = name.partition("@")
    repository, _, config = path.partition(":")
    try:
        return datasets.load_dataset(repository, config or None, split=split or "train", streaming=streaming)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name!r} is neither a file here nor a data set on the hub that can be loaded: {reason}"
        ) from error


class _quiet:
    """No progress bars of `datasets` while a local file is read, nor its own lines about a fault that is raised too."""

    def __init__(self, datasets: Any) -> None:
        self.datasets = datasets

    def __enter__(self) -> None:
        self.shown, self.verbosity = self.datasets.is_progress_bar_enabled(), self.datasets.logging.get_verbosity()
        self.datasets.disable_progress_bars()
        self.datasets.logging.set_verbosity(self.datasets.logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self.datasets.logging.set_verbosity(self.verbosity)
        if self.shown:
            self.datasets.enable_progress_bars()

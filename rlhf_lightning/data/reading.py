"""Reading rows from files and the hub; a bad row is named by its file and line."""

from __future__ import annotations

import glob
import os
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.data.objects import first_rows, is_rows, label, undecoded
from rlhf_lightning.data.tables import Source, csv_file, json_file, json_lines, numbered, parquet_file
from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.session import named_object

__all__ = ["Source", "read"]

SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".parquet")


READERS = {".jsonl": json_lines, ".json": json_file, ".csv": csv_file, ".parquet": parquet_file}


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
    return numbered(label(rows), first_rows(rows, limit))


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
        return READERS[suffix](path, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data file {name} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data file {name} is not UTF-8 text (byte {error.start + 1})") from error


def _from_hub(name: str, limit: int | None) -> Source:
    try:
        data = hub_data(name, streaming=limit is not None)  # else all of it would be downloaded
    except UserError:  # without a network a data set of the cache can be loaded, and not streamed
        data = hub_data(name)
    return numbered(name, (dict(row) for row in islice(data, limit)))


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
        data = datasets.load_dataset(repository, config or None, split=split or "train", streaming=streaming)
        return undecoded(data)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name!r} is neither a file here nor a data set on the hub that can be loaded: {reason}"
        ) from error

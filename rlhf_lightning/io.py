"""Write files atomically, and format JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then rename it to `path`.

    Raises:
        OSError: the file cannot be written; `path` is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        apply_umask(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def apply_umask(path: Path) -> None:
    """Set the mode of a new file or folder; safetensors and tempfile restrict theirs to the owner."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def json_line(row: dict[str, Any]) -> str:
    """Format a row as a line that every JSON reader accepts: NaN becomes null."""
    finite = {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
    return json.dumps(finite, default=str, ensure_ascii=False) + "\n"


def append_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows to a file of JSON lines; a lone surrogate, which UTF-8 cannot encode, is escaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(map(json_line, rows))

"""Integrity of checkpoint files, checked before torch is imported."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_lightning.errors import UserError


def damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint; return None for a complete one.

    PyTorch writes a zip archive with a checksum of every tensor, and the table of contents last. A truncated file has no table,
    and a changed byte does not match its checksum. A checkpoint of several processes is a folder, completed by two files.
    """
    if path.is_dir():
        return None if (path / ".metadata").exists() and (path / "meta.pt").exists() else "it is incomplete"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        return "it is truncated or no checkpoint"
    except OSError as error:
        return str(error.strerror)
    return f"{broken} in it does not match its checksum" if broken else None


def check(path: Path) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        UserError: it is damaged; the message names a complete one beside it.
    """
    fault = damage(path)
    if fault is None:
        return
    complete = [
        other.name for other in newest_first(path.parent) if other.resolve() != path.resolve() and not damage(other)
    ]
    hint = f"pass {complete[0]} beside it, which is complete" if complete else "there is no other beside it"
    raise UserError(f"checkpoint {path} is damaged: {fault}; {hint}")


@contextmanager
def plain_only(path: Path) -> Iterator[None]:
    """Turn torch's refusal of anything but plain tensors and numbers, which could run code, into one line.

    Raises:
        UserError: the checkpoint holds another object.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|global (\S+)", str(error))
        name = next((part for part in found.groups() if part), "an object") if found else "an object"
        raise UserError(
            f"checkpoint {path} holds {name.rstrip('.')}, and only plain tensors and numbers are read, as anything else can run "
            "code; if you trust its author, set --weights_only false"
        ) from error


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest complete checkpoint of a folder, and describe each newer one, which is damaged, in a line."""
    lines: list[str] = []
    for path in newest_first(folder):
        fault = damage(path)
        if fault is None:
            return path, lines
        lines.append(f"checkpoint {path} is damaged ({fault}): trying the one before")
    return None, lines


def newest_first(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """List the checkpoints of a folder without links, the newest first; an earlier run may have reached a later step."""
    paths = [path for path in folder.glob(pattern) if not path.is_symlink()]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)

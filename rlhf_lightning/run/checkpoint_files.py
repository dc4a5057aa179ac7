"""Whether a checkpoint is whole, found out before anything heavy is imported."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_lightning.errors import UserError


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is.

    PyTorch writes a zip archive with a checksum of every tensor, and its table of contents last: a file that was cut off has
    none, and a byte that changed does not fit its checksum. A folder is written by many processes, two files of it last.
    """
    if path.is_dir():
        return None if (path / ".metadata").exists() and (path / "meta.pt").exists() else "it was not finished"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile:
        return "it is cut off or no checkpoint"
    except OSError as error:
        return str(error.strerror)
    return f"{broken} in it does not fit its checksum" if broken else None


def check(path: Path) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        UserError: it is damaged; names the ones beside it that are whole.
    """
    fault = damage(path)
    if fault is None:
        return
    whole = [
        other.name for other in newest_first(path.parent) if other.resolve() != path.resolve() and not damage(other)
    ]
    hint = f"{whole[0]} beside it is whole" if whole else "there is no other beside it"
    raise UserError(f"checkpoint {path} is damaged: {fault}; {hint}")


@contextmanager
def plain_only(path: Path) -> Iterator[None]:
    """While a checkpoint is read as plain tensors and numbers: say so where it holds anything else, which could be code.

    Raises:
        UserError: it does.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|global (\S+)", str(error))
        name = next((part for part in found.groups() if part), "an object") if found else "an object"
        raise UserError(
            f"checkpoint {path} holds {name.rstrip('.')}, and only plain tensors and numbers are read, as anything else can run "
            "code; if you wrote it yourself, --weights_only false reads it all the same"
        ) from error


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in a folder that is whole, and one line about each newer one that is not."""
    said: list[str] = []
    for path in newest_first(folder):
        fault = damage(path)
        if fault is None:
            return path, said
        said.append(f"checkpoint {path} is damaged ({fault}): going back to the one before")
    return None, said


def newest_first(folder: Path, pattern: str = "*.ckpt") -> list[Path]:
    """Every checkpoint of a folder once: links are names of others. By time, as an earlier run may have gone further."""
    paths = [path for path in folder.glob(pattern) if not path.is_symlink()]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)

"""Refuse checkpoints that are damaged, or that hold more than plain tensors and numbers."""

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

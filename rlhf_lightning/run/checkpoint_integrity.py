"""Refuse checkpoints that are damaged, or that hold more than plain tensors and numbers."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_lightning.errors import UserError, text_of


def damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint; return None for a complete one.

    PyTorch writes a zip archive with a checksum of every tensor, and the table of contents last. A truncated file has no table,
    and a changed byte does not match its checksum. A checkpoint of several processes is a folder, completed by two files.
    """
    if path.is_dir():
        return None if (path / ".metadata").exists() and (path / "meta.pt").exists() else _folder_fault(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if fault := _archive_fault(archive.infolist()):
                return fault
            broken = archive.testzip()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
    ):  # of an encrypted archive too
        return _file_fault(path)
    except OSError as error:
        return str(error.strerror)
    return f"{broken} in it does not match its checksum" if broken else None


def _archive_fault(entries: list[zipfile.ZipInfo]) -> str | None:
    """Describe a zip archive that is no checkpoint, by its table of contents."""
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        return "it is a TorchScript program and no checkpoint of a run"
    if "data.pkl" not in names:
        return "it is a zip archive that PyTorch did not write"
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "it is compressed, as PyTorch writes no checkpoint"
    return None


def _file_fault(path: Path) -> str:
    with open(path, "rb") as file:
        is_pickle = file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if is_pickle:
        return (
            "it is a pickle, as PyTorch wrote before 1.6, which can run code; if you trust its author, load it with torch.load "
            "and save it again with torch.save"
        )
    return "it is truncated or no checkpoint"


def _folder_fault(path: Path) -> str:
    if (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return "it is the folder of a model; set name_or_path to it instead"
    return "it is incomplete"


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
    except UserError:
        raise
    except Exception as error:  # torch.load raises many, of a pickle that is no checkpoint
        raise UserError(f"checkpoint {path} cannot be read: {type(error).__name__}: {text_of(error)}") from error

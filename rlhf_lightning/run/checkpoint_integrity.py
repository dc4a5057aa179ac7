"""Refuse checkpoints that are damaged, or that hold more than plain tensors and numbers."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rlhf_lightning.errors import UserError, text_of

MARK = b"rlhf_lightning sha256 "
"""Begins the comment of the zip archive that a checkpoint is; the digest of all bytes before it ends the file."""
DIGEST, BLOCK = 64, 2**20
END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
DIGESTS = "digests"
"""File of a folder checkpoint: a line per file with its digest, and the digest of these lines."""
UNKNOWN = "of an earlier version or of another program: it holds no digest"


def seal(file: BinaryIO) -> None:
    """End a zip archive with a comment that holds the digest of every byte before the digest.

    Args:
        file: open for reading and writing.
    """
    file.seek(-END_OF_DIRECTORY.size, os.SEEK_END)
    end = END_OF_DIRECTORY.unpack(file.read())
    assert end[0] == b"PK\x05\x06", "torch.save wrote no zip archive, or one with a comment"
    file.seek(-END_OF_DIRECTORY.size, os.SEEK_END)
    file.write(END_OF_DIRECTORY.pack(*end[:-1], len(MARK) + DIGEST) + MARK)
    file.seek(0)
    digest = _digest_of(file, None)
    file.seek(0, os.SEEK_END)
    file.write(digest.encode())


def seal_folder(folder: Path) -> None:
    """Write the digests of the files of a folder checkpoint, and the digest of these lines."""
    lines = "".join(f"{_digest(folder / name)}  {name}\n" for name in _names(folder))
    partial = folder.with_name(f".{folder.name}.{DIGESTS}.partial")
    partial.write_text(lines + hashlib.sha256(lines.encode()).hexdigest(), encoding="utf-8")
    os.replace(partial, folder / DIGESTS)


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint: that it is damaged, or of an earlier version; None for a complete one."""
    try:
        return _damage_of_folder(path) if path.is_dir() else _damage_of_file(path)
    except OSError as error:
        return f"damaged: {error.strerror}"


def _damage_of_file(path: Path) -> str | None:
    tail = len(MARK) + DIGEST
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - tail))
        end = file.read()
    if end[: len(MARK)] == MARK:
        whole = _digest(path, size - DIGEST).encode() == end[len(MARK) :]
        return None if whole else "damaged: its bytes do not match its digest"
    return _foreign(path)


def _foreign(path: Path) -> str:
    """Say what a file without a digest is."""
    try:
        with zipfile.ZipFile(path) as archive:
            fault = _archive_fault(archive.infolist())
            broken = None if fault else archive.testzip()
            fault = f"{broken} in it does not match its checksum" if broken else fault
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
    ):  # of an encrypted archive too
        fault = _file_fault(path)
    return f"damaged: {fault}" if fault else UNKNOWN


def _damage_of_folder(folder: Path) -> str | None:
    if not (folder / DIGESTS).is_file():
        complete = (folder / ".metadata").exists() and (folder / "meta.pt").exists()
        return UNKNOWN if complete else f"damaged: {_folder_fault(folder)}"
    text = (folder / DIGESTS).read_bytes()
    lines, own = text[:-DIGEST], text[-DIGEST:]
    if hashlib.sha256(lines).hexdigest().encode() != own:
        return f"damaged: its file {DIGESTS} does not match its own digest"
    known = {name: digest for digest, name in (line.split("  ", 1) for line in lines.decode().splitlines())}
    if sorted(known) != _names(folder):
        return "damaged: files are missing, or were added"
    broken = [name for name, digest in known.items() if _digest(folder / name) != digest]
    return f"damaged: its file {broken[0]} does not match its digest" if broken else None


def _names(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS
    )


def _digest(path: Path, size: int | None = None) -> str:
    with open(path, "rb") as file:
        return _digest_of(file, size)


def _digest_of(file: BinaryIO, size: int | None) -> str:
    """Compute the digest of the next `size` bytes of a file; None for all of them."""
    found = hashlib.sha256()
    while block := file.read(BLOCK if size is None else min(size, BLOCK)):
        found.update(block)
        size = None if size is None else size - len(block)
    return found.hexdigest()


def refuse_changed(path: Path) -> None:
    """Refuse a checkpoint that is not byte by byte what was saved.

    Raises:
        UserError: it is damaged, or of an earlier version.
    """
    if fault := damage(Path(path)):
        raise UserError(f"checkpoint {path} is {fault}; {remedy(fault)}")


def remedy(fault: str) -> str:
    """Say what to do about a checkpoint that cannot be read."""
    new = "start a new run from the export of that run"
    return new if fault == UNKNOWN else f"pass another one, or {new}"


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

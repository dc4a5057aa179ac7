"""Write each checkpoint whole or not at all: a temporary file, flushed to disk, then renamed."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from rlhf_lightning.errors import UserError
from rlhf_lightning.run.checkpoint_integrity import plain_only, refuse_changed, seal


class AtomicCheckpoints(TorchCheckpointIO):
    """Write a temporary file, flush it to disk, then rename it; a failure leaves the earlier checkpoint as it was.

    The digest of the file is inside it. Only plain tensors and numbers are read, unless `--weights_only false` is set.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full, or the file cannot be written for another reason.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with _locked(partial) as file:
                torch.save(checkpoint, file)
                seal(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except (OSError, RuntimeError) as error:  # torch reports some failures to write as RuntimeError
            generated = partial.stat().st_size if partial.exists() else 0
            partial.unlink(missing_ok=True)  # before what is free is counted
            free = os.statvfs(target.parent)
            raise UserError(
                f"checkpoint {target} could not be written: {_cause(error)} after {generated / 2**20:.0f} MiB, "
                f"{free.f_bavail * free.f_frsize / 2**20:.0f} MiB are free there; earlier checkpoints are complete; "
                "free some space and resume with --ckpt_path last"
            ) from error
        except BaseException:  # an interruption
            partial.unlink(missing_ok=True)
            raise

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            UserError: a byte of the file is not what was saved, or it holds objects that could run code, or no run.
        """
        if Path(path).is_dir():
            raise UserError(
                f"checkpoint {path} is a folder, which the strategy fsdp2 reads; set trainer.strategy to fsdp2"
            )
        refuse_changed(Path(path))
        with plain_only(path):
            found = super().load_checkpoint(path, map_location, weights_only is not False)
        if not isinstance(found, dict) or "pytorch-lightning_version" not in found:
            raise UserError(f"checkpoint {path} is no checkpoint of a run; set name_or_path to the weights of a model")
        return found


def _locked(path: Path) -> BinaryIO:
    """Open a file for writing with a lock that ends with this process; who gets the lock may remove an abandoned file."""
    while True:
        file = open(path, "w+b")  # noqa: SIM115  (the caller closes it)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else another process removed it before the lock was taken
            return file
        file.close()


def remove_abandoned(folder: Path) -> None:
    """Remove the partial files of killed processes; a file that another process is writing stays."""
    for path in folder.glob(".*.partial"):
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _cause(error: BaseException) -> str:
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, OSError):
        origin = origin.__cause__ or origin.__context__
    return str(origin.strerror if isinstance(origin, OSError) else error).splitlines()[0]

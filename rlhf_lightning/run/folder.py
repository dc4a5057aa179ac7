"""Choose the folder that a run writes to, before torch is imported."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from rlhf_lightning.errors import UserError

FOLDER_OF_RUN = "RLHF_LIGHTNING_RUN_FOLDER"
"""Environment variable by which the first process passes the folder to the processes it starts: their clocks differ."""
SECONDS_TO_WAIT = 10.0
"""For the processes of a run that was killed, which hold its folder until they end."""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_")


def is_first_process() -> bool:
    """Say whether this process is the first of its machine, before torch knows of the others."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_main_process() -> bool:
    """Say whether this process is the first of all machines, before torch knows of the others."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("NODE_RANK") or "0"
    return is_first_process() and rank == "0"


def choose_folder(
    subcommand: str,
    given: str | None,
    checkpoint: str | None,
    config: Path | None,
    fits: Callable[[Path], bool] = lambda folder: True,
) -> Path:
    """Choose where a run writes: the given folder, the folder of the run that it resumes, or a new one.

    Args:
        subcommand: fit, validate, test or predict.
        given: `trainer.default_root_dir`.
        checkpoint: `ckpt_path`.
        config: the first config, after which new runs are named.
        fits: whether the run of a folder has the stage, model and algorithm of this one.

    Raises:
        UserError: `ckpt_path` is last or best, and no earlier run that fits has a checkpoint.
    """
    if not is_first_process():
        given = os.environ.get(FOLDER_OF_RUN) or given
    if given:
        return Path(given).expanduser()
    runs = Path("runs") / (run_name(config) if config else subcommand)
    if checkpoint in ("last", "best"):
        earlier = sorted(runs.glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
        fitting = (folder for folder in dict.fromkeys(path.parent.parent for path in earlier) if fits(folder))
        if (found := next(fitting, None)) is None:
            same = " with the stage, model and algorithm of this config" if earlier else ""
            raise UserError(f"--ckpt_path {checkpoint}: no run{same} under {runs} has a checkpoint")
        return found
    if subcommand == "fit" and checkpoint and Path(checkpoint).parent.name == "checkpoints":
        return Path(checkpoint).parent.parent
    return _free(runs / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def _free(folder: Path) -> Path:
    number, first = 2, folder.name
    while folder.exists():
        folder, number = folder.with_name(f"{first}.{number}"), number + 1
    return folder


@contextmanager
def claimed(folder: Path, is_new: bool) -> Iterator[Path]:
    """Make the folder of a run and hold it, so that no other process writes to it; a run that leaves no file leaves no folder.

    Args:
        folder: as `choose_folder` chose it.
        is_new: it was chosen by the time, and another process may have chosen the same: take the next one that is free.

    Yields:
        The folder.

    Raises:
        UserError: another process writes to the folder.
    """
    if not is_main_process():
        yield folder
        return
    missing = [path for path in folder.parents if not path.exists()]
    folder = _made(folder, is_new)
    held = os.open(folder, os.O_RDONLY)
    try:
        _lock(held, folder)
        try:
            yield folder
        finally:
            with suppress(OSError):  # it has files
                for path in (folder, *missing):
                    path.rmdir()
    finally:
        os.close(held)


def is_claimed(folder: Path) -> bool:
    """Say whether a process writes to the folder of a run."""
    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(held)
    return False


def _made(folder: Path, is_new: bool) -> Path:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=not is_new)
            return folder
        except FileExistsError:
            folder = _free(folder)


def _lock(held: int, folder: Path) -> None:
    end = time.monotonic() + SECONDS_TO_WAIT
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(
                    f"another process writes to the run's folder {folder}; wait until it has ended, or set "
                    "trainer.default_root_dir to another folder"
                ) from None
            time.sleep(0.2)
        except OSError:  # a file system without locks
            return None


def run_name(config: Path) -> str:
    """Name the runs of a config; a run of `runs/ppo/<time>/config.yaml` is named as that run was."""
    folder = config.absolute().parent
    if config.name != "config.yaml" or not (folder / "metrics.csv").exists():
        return config.stem
    return folder.parent.name if TIMESTAMP.match(folder.name) else folder.name


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written to.

    Raises:
        UserError: a part of its path is a file, or permissions are missing.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(
            f"the run's folder {folder} cannot be made: {existing} is a file; set trainer.default_root_dir to another folder"
        )
    if not os.access(existing, os.W_OK):
        raise UserError(
            f"the run's folder {folder} cannot be written to; set trainer.default_root_dir to another folder"
        )


def report_earlier_run(folder: Path) -> None:
    """Print that the files of an earlier run will be replaced, if there are any."""
    if (folder / "metrics.csv").exists() and is_first_process():
        print(f"starting over in {folder}: files of an earlier run are replaced (--ckpt_path last resumes that run)")

"""Choose the folder that a run writes to, before torch is imported."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

from rlhf_lightning.errors import UserError

FOLDER_OF_RUN = "RLHF_LIGHTNING_RUN_FOLDER"
"""Environment variable by which the first process passes the folder to the processes it starts: their clocks differ."""
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d_")


def is_first_process() -> bool:
    """Say whether this process is the first of its machine, before torch knows of the others."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def choose_folder(subcommand: str, given: str | None, checkpoint: str | None, config: Path | None) -> Path:
    """Choose where a run writes: the given folder, the folder of the run that it resumes, or a new one.

    Args:
        subcommand: fit, validate, test or predict.
        given: `trainer.default_root_dir`.
        checkpoint: `ckpt_path`.
        config: the first config, after which new runs are named.

    Raises:
        UserError: `ckpt_path` is last, and no earlier run has a checkpoint.
    """
    if not is_first_process():
        given = os.environ.get(FOLDER_OF_RUN) or given
    if given:
        return Path(given).expanduser()
    runs = Path("runs") / (run_name(config) if config else subcommand)
    if checkpoint == "last":
        earlier = sorted(runs.glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
        if not earlier:
            raise UserError(f"--ckpt_path last: no run under {runs} has a checkpoint")
        return earlier[-1].parent.parent
    if subcommand == "fit" and checkpoint and Path(checkpoint).parent.name == "checkpoints":
        return Path(checkpoint).parent.parent
    folder = runs / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    number = 2
    while folder.exists():
        folder, number = folder.with_name(f"{folder.name.split('.')[0]}.{number}"), number + 1
    return folder


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

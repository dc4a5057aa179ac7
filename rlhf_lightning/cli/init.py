"""`init DIR`: a copy of the configs and callbacks for a user to own."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from rlhf_lightning.cli.shipped import shipped_folder
from rlhf_lightning.errors import UserError

HELP = "copy configs/ and callbacks/ into a folder of your own"
COPIED = {"configs": "*.yaml", "configs/spaces": "*.yaml", "callbacks": "*.py"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder and `--force`."""
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def run(options: argparse.Namespace) -> int:
    """Copy configs and callbacks, and print every file that is written.

    Raises:
        UserError: a file exists and would be overwritten, or a file cannot be written.
    """
    copies = {
        path: options.folder / name / path.name
        for name, pattern in COPIED.items()
        for path in sorted(shipped_folder(name).glob(pattern))
        if path.name != "__init__.py"
    }
    if options.folder.exists() and not options.folder.is_dir():
        raise UserError(f"{options.folder} is a file; pass a folder")
    existing = [str(target) for target in copies.values() if target.exists()]
    if existing and not options.force:
        raise UserError(
            f"{existing[0]} exists already ({len(existing)} such files); pass another folder, or add --force"
        )
    for path, target in copies.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}; pass another folder") from error
        print(target)
    return 0

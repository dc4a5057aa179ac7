"""`init DIR`: a copy of the configs and callbacks for a user to own."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rlhf_lightning.cli.plugin_files import shipped_folder
from rlhf_lightning.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"init: {message}; {self.format_usage().strip()}")


def initialize(words: Sequence[str]) -> int:
    """`init DIR`: lay down configs/ and callbacks/ for a user to own.

    Raises:
        UserError: a file is there already and would be overwritten, or cannot be written, or the command line is not understood.
    """
    parser = _Parser(
        prog="rlhf_lightning init",
        description="Copy configs/ and callbacks/ to a folder of your own.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    options = parser.parse_args(words)
    copies = {
        path: options.folder / name / path.name
        for name, pattern in (("configs", "*.yaml"), ("callbacks", "*.py"))
        for path in sorted(shipped_folder(name).glob(pattern))
        if path.name != "__init__.py"
    }
    if options.folder.exists() and not options.folder.is_dir():
        raise UserError(f"{options.folder} is a file; init wants a folder")
    there = [str(target) for target in copies.values() if target.exists()]
    if there and not options.force:
        raise UserError(f"{there[0]} is there already ({len(there)} such files); choose another folder, or add --force")
    for path, target in copies.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}; choose another folder") from error
        print(target)
    return 0

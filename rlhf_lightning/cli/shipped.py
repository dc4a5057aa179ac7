"""Files that the package ships: configs, callbacks and the schema of configs."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
SCHEMA = Path(__file__).with_name("schema.json")


def shipped_folder(name: str) -> Path:
    """Return the package's folder of configs or callbacks, of an installation or a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name

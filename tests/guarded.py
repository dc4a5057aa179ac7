"""Puts this process and those that tests start under the socket guard; `tests/conftest.py` imports it first."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

GUARD = Path(__file__).parent / "guard"


def python_path(*folders: Path | str) -> str:
    """PYTHONPATH with these folders and the guard's `sitecustomize.py`."""
    return os.pathsep.join([*map(str, folders), str(GUARD)])


def asked() -> str:
    """The addresses outside this machine that this process of pytest and its children asked for, and where."""
    log = Path(os.environ["SOCKET_GUARD_LOG"])
    return log.read_text() if log.exists() else ""


_folder = tempfile.TemporaryDirectory(prefix="sockets-")
os.environ["SOCKET_GUARD_LOG"] = f"{_folder.name}/asked"
os.environ["PYTHONPATH"] = python_path(*filter(None, [os.environ.get("PYTHONPATH")]))
if not hasattr(sys.modules.get("sitecustomize"), "guard"):
    from tests.guard import sitecustomize  # noqa: F401

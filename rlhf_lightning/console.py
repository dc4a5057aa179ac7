"""Print lines once per run, whatever the number of ranks."""

from __future__ import annotations

import functools
import os
import sys

from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import printable_lines


def print_once(line: str) -> None:
    """Print `line` on rank 0 only, also before the process group exists; control characters are escaped."""
    if rank() == 0 and os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0":
        print(printable_lines(line), flush=True)


@functools.cache
def print_first_time(line: str) -> None:
    """Print `line` on rank 0; later calls with the same line print nothing."""
    print_once(line)


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel, where progress bars and tables for terminals are noise."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "ipykernel" in sys.modules and type(shell).__name__ != "TerminalInteractiveShell" and shell is not None

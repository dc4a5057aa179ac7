"""Print lines once per run, whatever the number of ranks."""

from __future__ import annotations

import functools
import os

from rlhf_lightning.distributed import rank


def print_once(line: str) -> None:
    """Print `line` on rank 0 only, also before the process group exists."""
    if rank() == 0 and os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0":
        print(line, flush=True)


@functools.cache
def print_first_time(line: str) -> None:
    """Print `line` on rank 0; later calls with the same line print nothing."""
    print_once(line)

"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory() -> float:
    """Return the highest memory use of this process in GiB; on CUDA that of its tensors."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes on macOS, KiB on Linux

"""Random weights that depend on a seed of their own and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn inside is the same on every machine; global random states are as before afterwards.

    New tensors are made on the CPU: a GPU's generator draws other numbers, and a reference that is built outside of
    Lightning's device context would then differ from the policy.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA as well, which is not put back
        yield

"""Derive seeds from numbers alone, and make new weights depend on their seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRIMES = (11400714785074694791, 14029467366897019727, 2870177450012600261)
"""xxHash64's first, second and fifth prime."""


def derive_seed(*numbers: int) -> int:
    """Mix `numbers` into one seed in [-2^63, 2^63) with xxHash64's round function (Collet 2012).

    The result equals CPython's hash of the same tuple, which no specification fixes, on every Python and platform.

    >>> derive_seed(0, 1)
    -1950498447580522560
    """
    first, second, fifth = PRIMES
    mixed = fifth
    for number in numbers:
        lane = abs(number) % (2**61 - 1) * (-1 if number < 0 else 1)  # Python's documented hash of an integer
        mixed = (mixed + (-2 if lane == -1 else lane) * second) % 2**64
        mixed = (mixed << 31 | mixed >> 33) * first % 2**64
    mixed = (mixed + (len(numbers) ^ fifth ^ 3527539)) % 2**64
    return 1546275796 if mixed == 2**64 - 1 else mixed - (mixed >> 63 << 64)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random state inside the block, and restore it afterwards.

    New tensors are created on the CPU, because a GPU's generator gives other numbers. A reference that is built outside
    Lightning's device context would then differ from the policy.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed CUDA, which is not restored
        yield

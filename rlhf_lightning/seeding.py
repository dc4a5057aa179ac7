"""Derive seeds from numbers alone, and make new weights depend on their seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

VALIDATION, PREDICTION, EVALUATION = -1, -2, -3
"""Seeds of generation outside training, where a run's own seed is at least 0."""
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


@dataclass(frozen=True)
class Randomness:
    """All random numbers of generation: a function of seed, iteration and global row, and of no rank, batch or engine.

    A row draws nothing from a state that it shares with another row, so it may be generated on any rank, beside any other row,
    and again.
    """

    seed: int
    iteration: int
    """Number of the rollout, or of the batch."""
    rows: tuple[int, ...]
    """Global numbers of the rows, whose place in the whole batch of all ranks they are."""

    def of(self, places: Iterable[int]) -> Randomness:
        """Return the random numbers of the rows at `places`."""
        return replace(self, rows=tuple(self.rows[place] for place in places))

    def repeated(self, copies: int) -> Randomness:
        """Return the random numbers of `copies` adjacent rows for each row: copy c of row n is row n × `copies` + c."""
        return replace(self, rows=tuple(row * copies + copy for row in self.rows for copy in range(copies)))

    def seeds(self) -> list[int]:
        """Return a seed of 63 bits for each row, for engines and environments with a random generator of their own."""
        return [derive_seed(self.seed, self.iteration, row) % 2**63 for row in self.rows]

    def uniforms(self, width: int) -> Tensor:
        """Return float32 [width, B] in [0, 1): number t of a row is the same for every width, and for its token at column t."""
        generator, columns = torch.Generator(), []
        for seed in self.seeds():
            columns.append(torch.rand(width, generator=generator.manual_seed(seed)))
        return torch.stack(columns, 1) if columns else torch.empty(width, 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random state inside the block, and restore it afterwards.

    New tensors are created on the CPU, because a GPU's generator gives other numbers. A reference that is built outside
    Lightning's device context would then differ from the policy.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed CUDA, which is not restored
        yield

"""Shares of cases, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A share of so many `cases` with its 95 % interval (Wilson 1927)."""

    share: float
    low: float
    high: float
    cases: int


def share(cases: Sequence[bool], z: float = 1.959964) -> Share | None:
    """Return the share of true cases; None where there are none.

    >>> found = share([True] * 8 + [False] * 2)
    >>> found.share, round(found.low, 3), round(found.high, 3), found.cases
    (0.8, 0.49, 0.943, 10)
    """
    return interval(sum(cases) / len(cases), len(cases), z) if cases else None


def interval(p: float, count: int, z: float = 1.959964) -> Share:
    """Return the interval of a share `p` of so many cases."""
    middle, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return Share(p, (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count), count)

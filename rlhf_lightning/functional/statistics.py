"""Compare two sets of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence


def win_rate(scores: Sequence[float], others: Sequence[float]) -> float:
    """Compute the fraction of pairs in which `scores` is higher; a tie counts half, and a pair with NaN is skipped.

    NaN without a pair to compare.

    Raises:
        ValueError: the two sequences differ in length.

    >>> win_rate([1.0, 2.0, 0.0, float("nan")], [0.0, 2.0, 1.0, 1.0])
    0.5
    """
    finite = [(a, b) for a, b in zip(scores, others, strict=True) if a == a and b == b]
    return sum((a > b) + 0.5 * (a == b) for a, b in finite) / len(finite) if finite else math.nan

"""How often one set of replies beats another."""

from __future__ import annotations

from collections.abc import Sequence


def win_rate(scores: Sequence[float], others: Sequence[float]) -> float:
    """Share of the pairs in which `scores` is the higher; a tie counts half, a pair with an unknown (NaN) score not at all.

    Raises:
        ValueError: the two differ in length.

    >>> win_rate([1.0, 2.0, 0.0, float("nan")], [0.0, 2.0, 1.0, 1.0])
    0.5
    """
    known = [(a, b) for a, b in zip(scores, others, strict=True) if a == a and b == b]
    return sum((a > b) + 0.5 * (a == b) for a, b in known) / max(1, len(known))

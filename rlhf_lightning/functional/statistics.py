"""Compare two sets of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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


def separation(scores: Tensor, labels: Tensor) -> float:
    """Compute the fraction of pairs of a good and a bad row in which the good one has the higher score; a tie counts half.

    This is the area under the ROC curve, ½ for scores that say nothing about the labels. It needs no threshold.

    Args:
        scores: [N].
        labels: bool [N]; True for good rows.

    Returns:
        NaN without a good or without a bad row.

    >>> separation(torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False]))
    0.625
    """
    good, bad = scores[labels].double(), scores[~labels].double().sort().values
    below = torch.searchsorted(bad, good) + torch.searchsorted(bad, good, right=True)
    return float(below.sum()) / 2 / (len(good) * len(bad)) if len(good) and len(bad) else math.nan

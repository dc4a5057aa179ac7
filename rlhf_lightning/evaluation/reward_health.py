"""Measure a reward: against pairs, against a judge, against length, against other rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.regression import spearman_corrcoef


def pair_metrics(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    """Measure the scores of judged pairs; a pair with NaN is skipped.

    Returns:
        `accuracy` (a tie counts half), `margin` (mean difference), and `calibration_error` of sigmoid(difference), expected
        over ten bins; empty without a pair.
    """
    known = [a - b for a, b in zip(chosen, rejected, strict=True) if a == a and b == b]
    if not known:
        return {}
    difference = torch.tensor(known, dtype=torch.float64)
    # every pair enters in both orders: else the label would always be 1, which no calibration error can use
    probability = torch.sigmoid(torch.cat([difference, -difference]))
    label = torch.cat([torch.ones_like(difference), torch.zeros_like(difference)]).long()
    return {
        "accuracy": float((difference > 0).double().mean() + (difference == 0).double().mean() / 2),
        "margin": float(difference.mean()),
        "calibration_error": float(binary_calibration_error(probability, label, n_bins=10)),
    }


def agreement(scores: Sequence[float], judge: Sequence[float], groups: Sequence[int]) -> float:
    """Return the fraction of pairs of one group, of those that the judge orders, that the scores order alike; ties count half.

    >>> agreement([1.0, 2.0, 5.0, 4.0], [0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1])
    0.5
    """
    pairs = [(i, j) for i, j in combinations(range(len(scores)), 2) if groups[i] == groups[j]]
    signs = [((judge[i] > judge[j]) - (judge[i] < judge[j]), scores[i] - scores[j]) for i, j in pairs]
    known = [sign * difference for sign, difference in signs if sign and difference == difference]
    return sum((x > 0) + 0.5 * (x == 0) for x in known) / len(known) if known else math.nan


def rank_correlation(scores: Sequence[float], others: Sequence[float]) -> float:
    """Return Spearman's rank correlation of the pairs without NaN; NaN where one side is constant."""
    known = [pair for pair in zip(scores, others, strict=True) if not any(map(math.isnan, pair))]
    if len({a for a, _ in known}) < 2 or len({b for _, b in known}) < 2:
        return math.nan
    columns = torch.tensor(known, dtype=torch.float64).T
    return float(spearman_corrcoef(columns[0], columns[1]))

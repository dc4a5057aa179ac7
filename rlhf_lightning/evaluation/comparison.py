"""Compare responses to the same prompts: outcomes, intervals, and what of a win rate is length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf_lightning.types import RawRows


@runtime_checkable
class PairwiseJudge(Protocol):
    """A judge that compares two responses; a `Reward` that has this method is asked in both orders."""

    def prefer(self, rows: RawRows, first: Sequence[str], second: Sequence[str]) -> Sequence[float | None]:
        """Return per row the probability that the first response is better; None where the judge cannot say."""


def outcomes_of_scores(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return per pair 1 for a higher score, 0.5 for a tie, 0 for a lower score, NaN for an unknown one.

    >>> outcomes_of_scores([1.0, 2.0, 0.0, float("nan")], [0.0, 2.0, 1.0, 1.0])
    [1.0, 0.5, 0.0, nan]
    """
    pairs = zip(scores, others, strict=True)
    return [float(a > b) + 0.5 * (a == b) if a == a and b == b else math.nan for a, b in pairs]


def outcomes_of_judge(
    judge: PairwiseJudge, rows: RawRows, responses: Sequence[str], others: Sequence[str]
) -> tuple[list[float], float]:
    """Ask a pairwise judge in both orders, and average, so that a preference for a place becomes a tie.

    Returns:
        The outcome per row, NaN where the judge could not say in one of the orders; and the fraction of the other rows in which
        the two orders prefer the same response.
    """
    forward, backward = judge.prefer(rows, responses, others), judge.prefer(rows, others, responses)
    pairs = [(a, 1 - b) if a is not None and b is not None else None for a, b in zip(forward, backward, strict=True)]
    agreed = [(pair[0] - 0.5) * (pair[1] - 0.5) > 0 or pair == (0.5, 0.5) for pair in pairs if pair is not None]
    outcomes = [math.nan if pair is None else sum(pair) / 2 for pair in pairs]
    return outcomes, sum(agreed) / max(1, len(agreed))


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron 1979); NaN values are skipped.

    >>> bootstrap_interval([0.5, 0.5, 0.5])
    (0.5, 0.5)
    """
    known = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    if not len(known):
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(known), (resamples, len(known)), generator=generator)
    means = known[index].mean(-1)
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def length_controlled_win_rate(
    outcomes: Sequence[float], lengths: Sequence[float], other_lengths: Sequence[float], ridge: float = 0.01
) -> float:
    """Return the win rate that a logistic regression expects of responses of equal length (Dubois et al. 2024).

    The regression explains outcomes by a constant and tanh of the length difference, divided by its standard deviation.

    Args:
        outcomes: 1, 0.5 or 0 per pair; pairs with NaN are skipped.
        lengths: of the responses that win at 1.
        other_lengths: of the responses they are compared with.
        ridge: penalty ridge / 2 · (constant² + slope²), which bounds both where one side wins every pair.
    """
    known = [each for each in zip(outcomes, lengths, other_lengths, strict=True) if each[0] == each[0]]
    if not known:
        return math.nan
    wins, own, other = torch.tensor(known, dtype=torch.float64).T
    difference = own - other
    scale = difference.std(correction=0)
    feature = torch.tanh(difference / scale) if scale > 0 else torch.zeros_like(difference)
    constant = _logistic(torch.stack([torch.ones_like(feature), feature], -1), wins, ridge)[0]
    return float(torch.sigmoid(constant))


def _logistic(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Fit a logistic regression [K] of targets [N] on features [N, K] by Newton's method with step halving."""
    weights = features.new_zeros(features.shape[1])

    def loss(w: Tensor) -> Tensor:
        logits = features @ w
        return (torch.nn.functional.softplus(logits) - targets * logits).sum() + ridge / 2 * w @ w

    for _ in range(100):
        probability = torch.sigmoid(features @ weights)
        gradient = features.T @ (probability - targets) + ridge * weights
        curvature = (features.T * (probability * (1 - probability))) @ features
        step = torch.linalg.solve(curvature + ridge * torch.eye(len(weights), dtype=weights.dtype), gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > loss(weights):
            size /= 2
        weights = weights - size * step
        if float(step.abs().max()) < 1e-10:
            break
    return weights

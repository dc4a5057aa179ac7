"""Ensembles of reward heads: how far they disagree, and the weights by which each learns from its own bootstrap sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def disagreement(scores: Sequence[Sequence[float]]) -> float:
    """Return the mean over responses of the standard deviation over rewards, each standardised over the responses.

    Args:
        scores: one sequence per reward; responses with NaN are skipped.
    """
    table = torch.tensor(scores, dtype=torch.float64)
    table = table[:, ~table.isnan().any(0)]
    if table.shape[1] < 2:
        return math.nan
    return float(_standardised(table).std(0, correction=0).mean())


def _standardised(table: Tensor) -> Tensor:
    deviation = table.std(1, correction=0, keepdim=True)
    return (table - table.mean(1, keepdim=True)) / torch.where(deviation > 0, deviation, 1.0)


def bootstrap_weights(seed: int, heads: int) -> Tensor:
    """Sample how often each head's bootstrap sample has one row: Poisson(1), the limit of drawing n rows of n with replacement.

    A weight depends on the seed alone, so a row keeps its weights over epochs, and in whatever batch it is
    (Oza and Russell 2001, Online Bagging and Boosting, section 2).

    Args:
        seed: of the row; any integer.
        heads: K.

    Returns:
        float32 [K]; 1 in expectation.
    """
    return torch.poisson(torch.ones(heads), generator=torch.Generator().manual_seed(seed % 2**63))

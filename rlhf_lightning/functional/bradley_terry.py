"""Strengths of items from comparisons of two, with ties: Bradley and Terry (1952), ties by Davidson (1970)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Strengths:
    """Hold the strengths of K items, in nats: the odds that i beats j, ties aside, are exp(scores[i] - scores[j])."""

    scores: Tensor
    """float64 [K]; they sum to 0."""
    errors: Tensor
    """float64 [K]; standard errors, of the inverse information at the maximum."""
    tie: float
    """Davidson's ν: a tie of equal items has the odds ν : 1 against a win of one of them; 0 without ties."""

    def interval(self, item: int, z: float = NORMAL_95) -> tuple[float, float]:
        """Return the interval of one score: score ± z standard errors."""
        score, error = float(self.scores[item]), float(self.errors[item])
        return score - z * error, score + z * error


def bradley_terry(wins: Tensor, ties: Tensor | None = None, ridge: float = 0.01) -> Strengths:
    """Fit strengths by maximum likelihood.

    With Davidson's ties, P(i beats j) = e^{s_i} / D, P(tie) = ν e^{(s_i + s_j) / 2} / D, and D is the sum of e^{s_i}, e^{s_j} and
    ν e^{(s_i + s_j) / 2} (Davidson 1970, eq. 2.2).

    Args:
        wins: [K, K]; how often item i (row) beat item j (column). The diagonal is not read. Fractions are allowed.
        ties: symmetric [K, K]; how often i and j tied; None without ties.
        ridge: penalty ridge / 2 · Σ s², which bounds the strength of an item that won or lost every comparison.

    Returns:
        The strengths; items that are connected to no other have a score near 0 and a large error.

    Raises:
        ValueError: the matrices are not square, or have a negative or non-finite entry.

    >>> found = bradley_terry(torch.tensor([[0.0, 30.0], [10.0, 0.0]]), ridge=0.0)
    >>> round(float(found.scores[0] - found.scores[1]), 4)  # log 3
    1.0986
    """
    wins = wins.double()
    ties = torch.zeros_like(wins) if ties is None else ties.double()
    if wins.dim() != 2 or wins.shape[0] != wins.shape[1] or ties.shape != wins.shape:
        raise ValueError(f"wins has shape {tuple(wins.shape)} and ties {tuple(ties.shape)}; both must be [K, K]")
    if not all(bool((x.isfinite() & (x >= 0)).all()) for x in (wins, ties)):
        raise ValueError("wins and ties must be finite and not negative")
    count = len(wins)
    first, second = torch.triu_indices(count, count, 1)
    outcomes = torch.stack([wins[first, second], wins[second, first], (ties + ties.T)[first, second] / 2], -1)
    has_ties = bool(outcomes[:, 2].sum() > 0)

    def loss(parameters: Tensor) -> Tensor:
        """Negative log-likelihood of K strengths and log ν, with the penalty."""
        scores, log_tie = parameters[:count], parameters[count]
        a, b = scores[first], scores[second]
        logits = torch.stack([a, b, (a + b) / 2 + log_tie], -1) if has_ties else torch.stack([a, b], -1)
        likelihood = (outcomes[:, : logits.shape[1]] * logits.log_softmax(-1)).sum()
        tie_prior = 0.5e-6 * log_tie**2
        return -likelihood + (ridge / 2 + 1e-9) * (scores**2).sum() + 0.5 * scores.sum() ** 2 + tie_prior

    parameters = _minimum(loss, torch.zeros(count + 1, dtype=torch.float64))
    covariance = torch.linalg.inv(torch.autograd.functional.hessian(loss, parameters))
    # the sum of the scores is fixed at 0 by a term of the loss, whose share of the covariance does not belong to the errors
    center = torch.eye(count, dtype=torch.float64) - 1 / count
    errors = (center @ covariance[:count, :count] @ center).diagonal().clamp(min=0).sqrt()
    scores = parameters[:count] - parameters[:count].mean()
    return Strengths(scores, errors, math.exp(float(parameters[count])) if has_ties else 0.0)


def win_probability(difference: float) -> float:
    """Return the probability that the stronger of two items wins, ties aside.

    >>> round(win_probability(math.log(3)), 4)
    0.75
    """
    return float(torch.exp(-softplus(torch.tensor(-difference, dtype=torch.float64))))


def _minimum(loss: object, start: Tensor) -> Tensor:
    """Minimise a convex function by Newton's method with step halving."""
    assert callable(loss)
    parameters = start
    for _ in range(200):
        gradient = torch.autograd.functional.jacobian(loss, parameters)
        step = torch.linalg.solve(torch.autograd.functional.hessian(loss, parameters), gradient)
        size = 1.0
        while size > 1e-8 and loss(parameters - size * step) > loss(parameters):
            size /= 2
        parameters = parameters - size * step
        if float(step.abs().max()) < 1e-9:
            break
    return parameters

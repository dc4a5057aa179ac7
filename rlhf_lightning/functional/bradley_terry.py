"""Strengths of responses or models from comparisons of two: Bradley and Terry (1952), ties by Davidson (1970)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_lightning.functional.votes import FIRST, SECOND, TIE, Votes

NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Strengths:
    """Hold the strengths of R responses or models, in nats: the odds that i beats j, ties aside, are e^(s_i - s_j)."""

    scores: Tensor
    """float64 [R]; those of each connected group sum to 0."""
    covariances: list[tuple[Tensor, Tensor]]
    """Of each connected group: its members, int64 [n], and the covariance of their strengths, float64 [n, n]."""
    reliabilities: Tensor
    """float64 [A]; 1 for a usual annotator, 0 for one who answers at random, negative for one who answers the opposite."""
    tie: float
    """Davidson's ν: with two equal responses a tie is ν times as likely as the choice of the first; 0 without ties."""

    @property
    def errors(self) -> Tensor:
        """float64 [R]; the standard error of each score, in its group whose mean is 0."""
        found = torch.zeros_like(self.scores)
        for members, covariance in self.covariances:
            centered = covariance - covariance.mean(0) - covariance.mean(1, keepdim=True) + covariance.mean()
            found[members] = centered.diagonal().clamp(min=0).sqrt()
        return found

    def interval(self, item: int, z: float = NORMAL_95) -> tuple[float, float]:
        """Return the interval of one score: score ± z standard errors."""
        score, error = float(self.scores[item]), float(self.errors[item])
        return score - z * error, score + z * error

    def difference_variances(self, pairs: Tensor) -> Tensor:
        """Return float64 [I], the variance of the difference of the strengths of `pairs` [I, 2] that were compared."""
        place, group = torch.empty(2, len(self.scores), dtype=torch.long)
        for number, (members, _) in enumerate(self.covariances):
            place[members], group[members] = torch.arange(len(members)), number
        found = torch.empty(len(pairs), dtype=torch.float64)
        for index, (one, other) in enumerate(pairs.tolist()):
            covariance = self.covariances[int(group[one])][1]
            i, j = place[one], place[other]
            found[index] = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        return found.clamp(min=0)


def fit_strengths(votes: Votes, scale: float = 2.0, reliability: bool = True) -> Strengths:
    """Estimate strengths by maximum a posteriori (Bradley and Terry 1952, ties of Davidson 1970, annotators of Chen et al. 2013).

    With d the difference of the strengths times the annotator's reliability, the first response is chosen with weight e^(d/2),
    the second with e^(-d/2), and a tie with ν.

    Args:
        votes: the choices.
        scale: standard deviation of the normal prior of a strength; infinite for none.
        reliability: estimate one for each annotator, with a normal prior of mean 1 and deviation 1; False: all are 1.
    """
    first, second = votes.responses[votes.pairs].unbind(-1)
    strengths = torch.zeros(int(votes.responses.max()) + 1, dtype=torch.float64, requires_grad=True)
    reliabilities = torch.ones(votes.annotator_count, dtype=torch.float64, requires_grad=reliability)
    counts = torch.ones(len(votes.pairs), dtype=torch.float64) if votes.counts is None else votes.counts
    has_ties = bool((votes.choices == TIE).any())
    log_tie = torch.zeros((), dtype=torch.float64, requires_grad=has_ties)

    def logits() -> Tensor:
        half = reliabilities[votes.annotators] * (strengths[first] - strengths[second]) / 2
        tie = log_tie if has_ties else torch.tensor(-math.inf, dtype=torch.float64)
        return torch.stack([half, -half, tie.expand_as(half)], -1)

    def loss() -> Tensor:
        likelihood = (counts * logits().log_softmax(-1).gather(-1, votes.choices[:, None])[:, 0]).sum()
        prior = (strengths / scale).square().sum() + reliability * (reliabilities - 1).square().sum()
        return prior / 2 - likelihood

    _minimise(loss, [x for x in (strengths, reliabilities, log_tie) if x.requires_grad])
    with torch.no_grad():
        probabilities = logits().softmax(-1)
        spread = (probabilities[:, FIRST] + probabilities[:, SECOND]) / 4
        spread -= (probabilities[:, FIRST] - probabilities[:, SECOND]).square() / 4
        weights = counts * reliabilities[votes.annotators].square() * spread
        covariances = list(_covariances(votes, weights, scale, len(strengths)))
        tie = float(log_tie.exp()) if has_ties else 0.0
        return Strengths(strengths.detach(), covariances, reliabilities.detach(), tie)


def bradley_terry(wins: Tensor, ties: Tensor | None = None, ridge: float = 0.01) -> Strengths:
    """Fit the strengths of K items to tables of their comparisons.

    Args:
        wins: [K, K]; how often item i (row) beat item j (column). The diagonal is not read. Fractions are allowed.
        ties: symmetric [K, K]; how often i and j tied; None without ties.
        ridge: penalty ridge / 2 · Σ s², which bounds the strength of an item that won or lost every comparison.

    Returns:
        The strengths; items that are connected to no other have a score near 0.

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
    first, second = torch.triu_indices(len(wins), len(wins), 1)
    counts = torch.cat([wins[first, second], wins[second, first], (ties + ties.T)[first, second] / 2])
    made = counts > 0
    pairs = torch.arange(len(first)).repeat(3)[made]
    votes = Votes(
        pairs=pairs,
        annotators=torch.zeros_like(pairs),
        choices=torch.tensor([FIRST, SECOND, TIE]).repeat_interleave(len(first))[made],
        responses=torch.stack([first, second], -1),
        counts=counts[made],
    )
    return fit_strengths(votes, scale=math.inf if ridge == 0 else ridge**-0.5, reliability=False)


def win_probability(difference: float) -> float:
    """Return the probability that the stronger of two items wins, ties aside.

    >>> round(win_probability(math.log(3)), 4)
    0.75
    """
    return float(torch.exp(-softplus(torch.tensor(-difference, dtype=torch.float64))))


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Minimise a smooth function of `parameters`, in place."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]


def _covariances(votes: Votes, weights: Tensor, scale: float, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each connected group of responses with the inverse of the Hessian of its strengths (Laplace's approximation).

    Without a prior only differences have a variance; the pseudo-inverse gives these.
    """
    edges = votes.responses[votes.pairs]
    groups = _groups(votes.responses, count)
    group, place = torch.empty(2, count, dtype=torch.long)
    for number, members in enumerate(groups):
        group[members], place[members] = number, torch.arange(len(members))
    order = group[edges[:, 0]].argsort()
    sizes = group[edges[:, 0]].bincount(minlength=len(groups)).tolist()
    for members, own in zip(groups, order.split(sizes), strict=True):
        (i, j), w = place[edges[own]].unbind(-1), weights[own]
        hessian = torch.eye(len(members), dtype=torch.float64) / scale**2
        for row, column, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            hessian.index_put_((row, column), sign * w, accumulate=True)
        yield members, torch.linalg.pinv(hessian, hermitian=True)


def _groups(responses: Tensor, count: int) -> list[Tensor]:
    """Return the members of each group of responses that comparisons connect."""
    parent = list(range(count))

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for one, other in responses.tolist():
        parent[root(one)] = root(other)
    groups: dict[int, list[int]] = {}
    for x in range(count):
        groups.setdefault(root(x), []).append(x)
    return [torch.tensor(members) for members in groups.values()]

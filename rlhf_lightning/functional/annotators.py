"""One probability from what several annotators said of a pair: majority, Dawid-Skene, Bradley-Terry with ties.

Every function is deterministic and computes in float64. Choices are `FIRST`, `SECOND` or `TIE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, SECOND, TIE = 0, 1, 2


@dataclass(frozen=True)
class Votes:
    """N choices between the two responses of I pairs, by A annotators."""

    pairs: Tensor
    """int64 [N]; number of the pair."""
    annotators: Tensor
    """int64 [N]; number of the annotator."""
    choices: Tensor
    """int64 [N]; FIRST, SECOND or TIE."""
    responses: Tensor
    """int64 [I, 2]; numbers of the first and the second response of each pair. Pairs may share responses."""
    swapped: Tensor | None = None
    """bool [N]; True where the second response was shown on the left. None: the first one always was."""
    known: Tensor | None = None
    """int64 [I]; what is known to be true of a pair, -1 of other pairs. `dawid_skene` learns from it how annotators err."""

    @property
    def annotator_count(self) -> int:
        """A."""
        return int(self.annotators.max()) + 1 if len(self.annotators) else 0

    def table(self) -> Tensor:
        """Return float64 [I, 3], how often each choice was made of each pair."""
        found = torch.zeros(len(self.responses), 3, dtype=torch.float64)
        return found.index_put_((self.pairs, self.choices), torch.ones((), dtype=torch.float64), accumulate=True)


@dataclass(frozen=True)
class Reconciled:
    """What the votes say of each pair."""

    probabilities: Tensor
    """float64 [I]; that the first response is the better one, a tie counting half."""
    deviations: Tensor
    """float64 [I]; standard deviation of that number."""
    reliabilities: Tensor | None = None
    """float64 [A]; None where all annotators count alike. Its unit is that of the function."""


def majority(votes: Votes) -> Reconciled:
    """Return the share of the votes for the first response; 0.5 for a pair without votes.

    The deviation is that of the mean of so many votes under a uniform prior on the share.
    """
    table = votes.table()
    count = table.sum(-1)
    won = table[:, FIRST] + table[:, TIE] / 2
    smooth = (won + 1) / (count + 2)
    shares = torch.where(count > 0, won / count.clamp(min=1), torch.full_like(won, 0.5))
    return Reconciled(shares, (smooth * (1 - smooth) / (count + 3)).sqrt())


# -- Dawid and Skene -------------------------------------------------------------------------------------------------------


def dawid_skene(votes: Votes, smoothing: float = 1.0, iterations: int = 200, tolerance: float = 1e-9) -> Reconciled:
    """Estimate what is true of each pair, and how each annotator errs, by expectation maximisation (Dawid and Skene 1979).

    A pair is truly won by the first response, by the second, or tied. An annotator has a probability of each choice for each
    truth, left and right as shown, so a leaning to one side is an error of the annotator and not of the pair.

    Args:
        votes: the choices.
        smoothing: votes like those of all annotators together that are added to the votes of each, for each truth; 0 is the
            paper's estimate, which an annotator of few votes makes extreme.
        iterations: at most.
        tolerance: of the probabilities, at which the iterations end.

    Returns:
        Reliabilities are the probability that the annotator chooses what is true.
    """
    says = _confusion_index(votes)
    truths = _with_known(votes, _normalised(votes.table()))
    for _ in range(iterations):
        prior, confusion = truths.mean(0), _confusions(votes, truths, smoothing)
        evidence = confusion.clamp(min=1e-300).log().flatten()[says]  # [N, 3], a column for each truth
        logits = prior.clamp(min=1e-300).log().expand(len(truths), 3).index_add(0, votes.pairs, evidence)
        before, truths = truths, _with_known(votes, logits.softmax(-1))
        if float((truths - before).abs().max()) < tolerance:
            break
    right = confusion.diagonal(dim1=1, dim2=2)
    both = prior.clone()
    both[[FIRST, SECOND]] = (prior[FIRST] + prior[SECOND]) / 2  # either may be on the left
    values = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    means = truths @ values
    variances = (truths * (values - means[:, None]) ** 2).sum(-1)
    return Reconciled(means, variances.sqrt(), right @ both)


def _with_known(votes: Votes, truths: Tensor) -> Tensor:
    if votes.known is None:
        return truths
    certain = torch.nn.functional.one_hot(votes.known.clamp(min=0), 3).double()
    return torch.where(votes.known[:, None] >= 0, certain, truths)


def _confusion_index(votes: Votes) -> Tensor:
    """Return int64 [N, 3], where in the flattened confusions [A, 3, 3] each vote is found for each truth."""
    truths, choices = _as_shown(votes, torch.arange(3)[None]), _as_shown(votes, votes.choices[:, None])
    return votes.annotators[:, None] * 9 + truths * 3 + choices


def _as_shown(votes: Votes, values: Tensor) -> Tensor:
    """Return choices or truths [N or 1, K] in terms of left and right, int64 [N or 1, K]."""
    if votes.swapped is None:
        return values
    return torch.where(votes.swapped[:, None] & (values != TIE), 1 - values, values)


def _confusions(votes: Votes, truths: Tensor, smoothing: float) -> Tensor:
    """Return float64 [A, 3, 3], each annotator's probabilities of a choice for each truth."""
    counts = torch.zeros(votes.annotator_count * 9, dtype=torch.float64)
    counts.index_add_(0, _confusion_index(votes).flatten(), truths[votes.pairs].flatten())
    counts = counts.view(-1, 3, 3)
    pooled = _normalised(counts.sum(0))
    return _normalised(counts + smoothing * pooled)


def _normalised(counts: Tensor) -> Tensor:
    """Divide by the sum of the last dimension; a third each where it is 0."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1e-300), torch.full_like(counts, 1 / counts.shape[-1]))


# -- Bradley-Terry with ties -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strengths:
    """Bradley-Terry strengths of R responses or models, on a logarithmic scale with mean about 0."""

    means: Tensor
    """float64 [R]."""
    covariances: list[tuple[Tensor, Tensor]]
    """Of each connected group: its members, int64 [n], and the covariance of their strengths, float64 [n, n]."""
    reliabilities: Tensor
    """float64 [A]; 1 for a usual annotator, 0 for one who answers at random, negative for one who answers the opposite."""
    tie: float
    """Davidson's ν: with two equal responses a tie is ν times as likely as the choice of the first."""

    def deviations(self) -> Tensor:
        """Return float64 [R], the standard deviation of each strength."""
        found = torch.zeros_like(self.means)
        for members, covariance in self.covariances:
            found[members] = covariance.diagonal().sqrt()
        return found

    def difference_variances(self, pairs: Tensor) -> Tensor:
        """Return float64 [I], the variance of the difference of the strengths of `pairs` [I, 2] that were compared."""
        place = torch.zeros(len(self.means), dtype=torch.long)
        group = torch.full((len(self.means),), -1, dtype=torch.long)
        for number, (members, _) in enumerate(self.covariances):
            place[members], group[members] = torch.arange(len(members)), number
        found = torch.empty(len(pairs), dtype=torch.float64)
        for index, (one, other) in enumerate(pairs.tolist()):
            covariance = self.covariances[int(group[one])][1]
            i, j = place[one], place[other]
            found[index] = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        return found.clamp(min=0)


def bradley_terry(votes: Votes, scale: float = 2.0, reliability: bool = True) -> Strengths:
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
    log_tie = torch.zeros((), dtype=torch.float64, requires_grad=bool((votes.choices == TIE).any()))

    def logits() -> Tensor:
        half = reliabilities[votes.annotators] * (strengths[first] - strengths[second]) / 2
        tie = log_tie if log_tie.requires_grad else torch.tensor(-math.inf, dtype=torch.float64)
        return torch.stack([half, -half, tie.expand_as(half)], -1)

    def loss() -> Tensor:
        likelihood = logits().log_softmax(-1).gather(-1, votes.choices[:, None]).sum()
        prior = (strengths / scale).square().sum() + reliability * (reliabilities - 1).square().sum()
        return prior / 2 - likelihood

    _minimise(loss, [x for x in (strengths, reliabilities, log_tie) if x.requires_grad])
    with torch.no_grad():
        probabilities = logits().softmax(-1)
        spread = (probabilities[:, FIRST] + probabilities[:, SECOND]) / 4
        spread -= (probabilities[:, FIRST] - probabilities[:, SECOND]).square() / 4
        weights = reliabilities[votes.annotators].square() * spread
        covariances = list(_covariances(votes, weights, scale, len(strengths)))
        return Strengths(strengths.detach(), covariances, reliabilities.detach(), float(log_tie.exp()))


def reconciled_by_strengths(votes: Votes, scale: float = 2.0) -> Reconciled:
    """Reconcile by `bradley_terry`: a usual annotator's probability of the first response, a tie counting half.

    The uncertainty of the strengths pulls it towards a half (MacKay 1992), so pairs of few votes are not certain.
    """
    found = bradley_terry(votes, scale)
    difference = found.means[votes.responses[:, 0]] - found.means[votes.responses[:, 1]]
    variances = found.difference_variances(votes.responses)
    tie = found.tie if bool((votes.choices == TIE).any()) else 0.0

    def expected(d: Tensor) -> Tensor:
        up, down = (d / 2).exp(), (-d / 2).exp()
        return (up + tie / 2) / (up + down + tie)

    means = expected(difference / (1 + math.pi * variances / 8).sqrt())
    deviation = variances.sqrt()
    return Reconciled(
        means, (expected(difference + deviation) - expected(difference - deviation)) / 2, found.reliabilities
    )


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

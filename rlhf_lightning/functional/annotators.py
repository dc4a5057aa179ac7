"""One probability from what several annotators said of a pair: majority, Dawid-Skene, Bradley-Terry with ties.

Every function is deterministic and computes in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.functional.bradley_terry import fit_strengths
from rlhf_lightning.functional.votes import FIRST, SECOND, TIE, Votes


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


# -- Bradley and Terry --------------------------------------------------------------------------------------------------


def reconciled_by_strengths(votes: Votes, scale: float = 2.0) -> Reconciled:
    """Reconcile by `fit_strengths`: a usual annotator's probability of the first response, a tie counting half.

    The uncertainty of the strengths pulls it towards a half (MacKay 1992), so pairs of few votes are not certain.
    """
    found = fit_strengths(votes, scale)
    difference = found.scores[votes.responses[:, 0]] - found.scores[votes.responses[:, 1]]
    variances = found.difference_variances(votes.responses)

    def expected(d: Tensor) -> Tensor:
        up, down = (d / 2).exp(), (-d / 2).exp()
        return (up + found.tie / 2) / (up + down + found.tie)

    means = expected(difference / (1 + math.pi * variances / 8).sqrt())
    deviation = variances.sqrt()
    return Reconciled(
        means, (expected(difference + deviation) - expected(difference - deviation)) / 2, found.reliabilities
    )

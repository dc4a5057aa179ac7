"""Several annotators become one probability."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import beta

from rlhf_lightning.functional.annotators import dawid_skene, majority, reconciled_by_strengths
from rlhf_lightning.functional.bradley_terry import fit_strengths
from rlhf_lightning.functional.votes import FIRST, SECOND, TIE, Votes

pytestmark = pytest.mark.unit
NUMBERS = json.loads((Path(__file__).parents[1] / "parity" / "crowd-kit-1.4.json").read_text())


def simulated(
    seed: int, pairs: int = 400, each: int = 4, accuracies: tuple[float, ...] = (0.9,) * 8 + (0.5,) * 4, ties: float = 0
) -> tuple[Votes, torch.Tensor]:
    """Votes of annotators who are right so often, and which response is better."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (pairs,), generator=generator)
    chosen = torch.stack([torch.randperm(len(accuracies), generator=generator)[:each] for _ in range(pairs)])
    right = torch.rand(pairs, each, generator=generator) < torch.tensor(accuracies)[chosen]
    choices = torch.where(right, truth[:, None], 1 - truth[:, None])
    choices = torch.where(torch.rand(pairs, each, generator=generator) < ties, TIE, choices)
    index = torch.arange(pairs)[:, None].expand(-1, each)
    responses = torch.arange(2 * pairs).view(-1, 2)
    return Votes(index.flatten(), chosen.flatten(), choices.flatten(), responses), truth


def accuracy(probabilities: torch.Tensor, truth: torch.Tensor) -> float:
    """A half counts half."""
    first = (truth == FIRST).double()
    return float(torch.where(probabilities == 0.5, 0.5, ((probabilities > 0.5).double() == first).double()).mean())


def votes_of(*rows: tuple[int, int, int], pairs: int, swapped: list[bool] | None = None) -> Votes:
    index, annotators, choices = torch.tensor(rows).T
    responses = torch.arange(2 * pairs).view(-1, 2)
    return Votes(index, annotators, choices, responses, None if swapped is None else torch.tensor(swapped))


def test_a_majority_counts_ties_half() -> None:
    rows = [(0, 0, FIRST), (0, 1, FIRST), (0, 2, TIE), (0, 3, SECOND), (1, 0, SECOND), (3, 0, FIRST)]
    found = majority(votes_of(*rows, pairs=4))
    assert found.probabilities.tolist() == [0.625, 0.0, 0.5, 1.0]
    assert found.deviations[0] < found.deviations[1] < found.deviations[2]
    torch.testing.assert_close(found.deviations[2], torch.tensor(1 / 12, dtype=torch.float64).sqrt())


def test_dawid_and_skene_give_the_numbers_of_crowd_kit() -> None:
    given = NUMBERS["dawid_skene"]
    found = dawid_skene(votes_of(*map(tuple, given["votes"]), pairs=given["pairs"]), smoothing=0, iterations=1000)
    expected = torch.tensor(given["first"], dtype=torch.float64)
    torch.testing.assert_close(found.probabilities, expected, atol=1e-4, rtol=0)


def test_strengths_are_those_of_crowd_kit() -> None:
    given = NUMBERS["bradley_terry"]
    rows = torch.tensor(given["comparisons"])  # winner, loser
    votes = Votes(
        torch.arange(len(rows)), torch.zeros(len(rows), dtype=torch.long), torch.full((len(rows),), FIRST), rows
    )
    found = fit_strengths(votes, scale=float("inf"), reliability=False).scores.softmax(-1)
    torch.testing.assert_close(found, torch.tensor(given["scores"], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reconcile", [dawid_skene, reconciled_by_strengths])
def test_annotators_who_guess_are_found_and_count_less(reconcile: object, seed: int) -> None:
    votes, truth = simulated(seed)
    found = reconcile(votes)  # type: ignore[operator]
    assert found.reliabilities[:8].min() > found.reliabilities[8:].max()
    assert accuracy(found.probabilities, truth) > accuracy(majority(votes).probabilities, truth)
    wrong = (found.probabilities > 0.5) != (truth == FIRST)
    sure = (found.probabilities - 0.5).abs()
    assert sure[wrong].mean() < 0.7 * sure[~wrong].mean()
    if reconcile is dawid_skene:
        assert found.deviations[wrong].mean() > found.deviations[~wrong].mean()


def test_an_annotator_who_chooses_the_opposite_is_read_so() -> None:
    votes, truth = simulated(0, accuracies=(0.95,) * 5 + (0.05,))
    for found in (dawid_skene(votes), reconciled_by_strengths(votes)):
        assert found.reliabilities is not None
        assert accuracy(found.probabilities, truth) > 0.97
    assert dawid_skene(votes).reliabilities[5] < 0.15  # type: ignore[index]
    assert reconciled_by_strengths(votes).reliabilities[5] < -0.3  # type: ignore[index]


def test_a_leaning_to_the_left_is_the_annotators_and_not_the_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    votes, truth = simulated(0, pairs=2000, each=3, accuracies=(0.9,) * 6)
    swapped = torch.rand(len(votes.pairs), generator=generator) < 0.5
    leans = (votes.annotators >= 2) & (torch.rand(len(votes.pairs), generator=generator) < 0.7)
    choices = torch.where(leans, swapped.long(), votes.choices)  # four annotators often choose what is on the left
    shown = Votes(votes.pairs, votes.annotators, choices, votes.responses, swapped)
    found, blind = dawid_skene(shown), dawid_skene(Votes(votes.pairs, votes.annotators, choices, votes.responses))
    assert accuracy(found.probabilities, truth) > accuracy(blind.probabilities, truth)
    assert accuracy(blind.probabilities, truth) > accuracy(majority(shown).probabilities, truth)


def test_the_responses_of_a_pair_are_alike() -> None:
    votes, _ = simulated(1, pairs=60, ties=0.2)
    other = Votes(
        votes.pairs,
        votes.annotators,
        torch.where(votes.choices == TIE, TIE, 1 - votes.choices),
        votes.responses.flip(-1),
    )
    for reconcile in (majority, dawid_skene, reconciled_by_strengths):
        one, two = reconcile(votes), reconcile(other)
        torch.testing.assert_close(one.probabilities, 1 - two.probabilities, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.deviations, two.deviations, atol=1e-5, rtol=0)


def test_ties_and_the_number_of_votes_move_a_probability_to_the_middle() -> None:
    rows = [(0, 0, FIRST), *((1, a, FIRST) for a in range(4)), *((2, a, TIE) for a in range(4)), (3, 1, SECOND)]
    found = reconciled_by_strengths(votes_of(*rows, pairs=4))
    p = found.probabilities
    assert 0.5 < p[0] < p[1] < 1
    torch.testing.assert_close(p[2], torch.tensor(0.5, dtype=torch.float64))
    assert p[3] < 0.5
    assert found.deviations[1] < found.deviations[0]


def test_uncertain_strengths_are_no_certain_preference() -> None:
    votes = votes_of(*((0, a, FIRST) for a in range(3)), pairs=1)
    strengths = fit_strengths(votes).scores
    certain = (strengths[0] - strengths[1]).sigmoid()
    found = float(reconciled_by_strengths(votes).probabilities[0])
    assert 0.6 < found < float(certain) - 0.02


def test_strengths_of_models_and_their_deviations() -> None:
    """Four models, as in a comparison of exports: more comparisons, smaller intervals; the order is that of the wins."""
    generator = torch.Generator().manual_seed(0)
    strengths = torch.tensor([0.0, 0.5, 1.0, 1.5])

    def ranked(comparisons: int) -> object:
        pairs = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(comparisons)])
        difference = strengths[pairs[:, 0]] - strengths[pairs[:, 1]]
        choices = (torch.rand(comparisons, generator=generator) > difference.sigmoid()).long()
        return fit_strengths(
            Votes(torch.arange(comparisons), torch.zeros(comparisons, dtype=torch.long), choices, pairs),
            reliability=False,
        )

    few, many = ranked(100), ranked(4000)
    assert many.scores.argsort().tolist() == [0, 1, 2, 3]  # type: ignore[attr-defined]
    gaps = many.scores - many.scores.mean()  # type: ignore[attr-defined]
    torch.testing.assert_close(gaps, strengths.double() - 0.75, atol=0.15, rtol=0)
    pair = torch.tensor([[3, 0]])
    ratio = few.difference_variances(pair) / many.difference_variances(pair)  # type: ignore[attr-defined]
    assert 20 < float(ratio) < 80  # 40 times the comparisons
    assert (few.errors > many.errors).all()  # type: ignore[attr-defined]


def test_pairs_without_votes_are_undecided() -> None:
    votes = votes_of((1, 0, FIRST), (1, 1, FIRST), pairs=3)
    for reconcile in (majority, dawid_skene, reconciled_by_strengths):
        found = reconcile(votes)
        assert found.probabilities[1] > 0.6
        if reconcile is not dawid_skene:  # whose prior is the share of the others
            assert found.probabilities[[0, 2]].tolist() == pytest.approx([0.5, 0.5])


def test_what_is_known_of_a_pair_is_learned_from_and_kept() -> None:
    rows = [(0, 0, FIRST), (0, 1, SECOND), (1, 0, FIRST), (1, 1, SECOND), (2, 0, FIRST), (2, 1, SECOND)]
    free = votes_of(*rows, pairs=3)
    known = replace(free, known=torch.tensor([FIRST, FIRST, -1]))
    found = dawid_skene(known)
    assert found.probabilities[:2].tolist() == [1.0, 1.0]
    assert found.probabilities[2] > 0.6  # the first annotator was right both times
    assert found.reliabilities is not None
    assert len(found.reliabilities) == known.annotator_count == 2
    assert found.reliabilities[0] > found.reliabilities[1]
    assert votes_of((0, 4, TIE), pairs=1).annotator_count == 5
    none = torch.zeros(0, dtype=torch.long)
    assert Votes(none, none, none, free.responses).annotator_count == 0


def test_a_majority_has_the_deviation_of_a_beta_distribution() -> None:
    found = majority(votes_of((0, 0, FIRST), (0, 1, FIRST), (0, 2, TIE), (0, 3, SECOND), (1, 0, SECOND), pairs=2))
    for index, (won, lost) in enumerate(((2.5, 1.5), (0.0, 1.0))):
        assert float(found.deviations[index]) == pytest.approx(beta(won + 1, lost + 1).std())


@pytest.mark.parametrize("scale", [0.7, 2.0])
def test_strengths_are_the_mode_of_the_posterior(scale: float) -> None:
    """Three responses and two annotators, with ties: an independent optimiser of the documented posterior."""
    rows = [(0, 0, FIRST), (0, 1, TIE), (1, 0, FIRST), (1, 1, SECOND), (2, 0, SECOND), (2, 1, SECOND), (0, 0, FIRST)]
    index, annotators, choices = torch.tensor(rows).T
    responses = torch.tensor([[0, 1], [1, 2], [0, 2]])

    def energy(x: np.ndarray) -> float:
        strengths, reliabilities, log_tie = x[:3], x[3:5], x[5]
        total = (strengths**2).sum() / (2 * scale**2) + ((reliabilities - 1) ** 2).sum() / 2
        for pair, annotator, choice in rows:
            i, j = responses[pair].tolist()
            half = reliabilities[annotator] * (strengths[i] - strengths[j]) / 2
            weights = np.array([half, -half, log_tie])
            total += np.log(np.exp(weights).sum()) - weights[choice]
        return float(total)

    options = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-8, "fatol": 1e-12}
    best = minimize(energy, np.array([0.0, 0, 0, 1, 1, 0]), method="Nelder-Mead", options=options)
    found = fit_strengths(Votes(index, annotators, choices, responses), scale)
    assert found.scores.tolist() == pytest.approx(best.x[:3], abs=1e-3)
    assert found.reliabilities.tolist() == pytest.approx(best.x[3:5], abs=1e-3)
    assert found.tie == pytest.approx(math.exp(best.x[5]), abs=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_an_uncertain_strength_pulls_a_probability_to_a_half(tied: bool) -> None:
    """MacKay 1992: the probability at d / √(1 + π v / 8), and half the distance between those at d ± √v."""
    rows = [(0, 0, FIRST), (0, 1, FIRST), (1, 0, SECOND), (1, 1, TIE if tied else FIRST)]
    votes = votes_of(*rows, pairs=2)
    strengths, found = fit_strengths(votes), reconciled_by_strengths(votes)
    for pair, (first, second) in enumerate(votes.responses.tolist()):
        d = float(strengths.scores[first] - strengths.scores[second])
        v = float(strengths.difference_variances(votes.responses)[pair])

        def probability(x: float) -> float:
            weights = [math.exp(x / 2), math.exp(-x / 2), strengths.tie]
            return (weights[0] + weights[2] / 2) / sum(weights)

        assert float(found.probabilities[pair]) == pytest.approx(probability(d / math.sqrt(1 + math.pi * v / 8)))
        deviation = (probability(d + math.sqrt(v)) - probability(d - math.sqrt(v))) / 2
        assert float(found.deviations[pair]) == pytest.approx(deviation)


def test_an_annotator_who_is_always_right_is_wholly_reliable() -> None:
    rows = [(pair, annotator, FIRST if pair < 3 else SECOND) for pair in range(5) for annotator in range(3)]
    found = dawid_skene(votes_of(*rows, pairs=5), smoothing=0)
    assert found.reliabilities is not None
    assert found.reliabilities.tolist() == pytest.approx([1.0] * 3)


def test_a_pair_without_votes_begins_with_a_third_of_each_truth() -> None:
    found = dawid_skene(votes_of((0, 0, FIRST), pairs=2), smoothing=0, iterations=1)
    # the mean of certainty and of a third each is 2/3, 1/6, 1/6; a tie counts half
    assert float(found.probabilities[1]) == pytest.approx(2 / 3 + 1 / 12)


@pytest.mark.parametrize(("options", "smoothing"), [({"smoothing": 0.0}, 0), ({"smoothing": 2.0}, 2), ({}, 1)])
def test_smoothing_adds_votes_like_those_of_all_annotators(options: dict[str, Any], smoothing: int) -> None:
    rows = [(pair, 0, choice) for pair, choice in enumerate([FIRST, FIRST, SECOND, SECOND])]
    rows += [(pair, 1, choice) for pair, choice in enumerate([FIRST, SECOND, SECOND, FIRST])]
    known = replace(votes_of(*rows, pairs=4), known=torch.tensor([FIRST, FIRST, SECOND, SECOND]))
    # of either truth the first annotator was right 2 of 2 times, the second 1 of 2, both together 3 of 4
    expected = [(right + smoothing * 3 / 4) / (2 + smoothing) for right in (2, 1)]
    found = dawid_skene(known, **options).reliabilities
    assert found is not None
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.7, 3.0])
def test_the_variances_of_strengths_are_the_inverse_of_the_hessian_of_the_posterior(scale: float) -> None:
    """By automatic differentiation, with reliabilities and ties as found; a pair has its lower number first or second."""
    rows = [(0, 0, FIRST), (0, 1, TIE), (1, 0, FIRST), (1, 1, SECOND), (2, 0, SECOND), (2, 1, SECOND), (0, 2, FIRST)]
    index, annotators, choices = torch.tensor(rows).T
    responses = torch.tensor([[0, 1], [2, 1], [2, 0], [3, 4]])  # nobody voted on the last pair
    counts = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    found = fit_strengths(Votes(index, annotators, choices, responses, counts=counts), scale)

    def energy(strengths: torch.Tensor) -> torch.Tensor:
        first, second = strengths[responses[index]].unbind(-1)
        half = found.reliabilities[annotators] * (first - second) / 2
        logits = torch.stack([half, -half, torch.full_like(half, math.log(found.tie))], -1)
        likelihood = counts * logits.log_softmax(-1)[torch.arange(len(rows)), choices]
        return strengths.square().sum() / (2 * scale**2) - likelihood.sum()

    hessian: Any = torch.autograd.functional.hessian(energy, found.scores)  # type: ignore[no-untyped-call]
    covariance = hessian.inverse()
    first, second = responses.T
    expected = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    torch.testing.assert_close(found.difference_variances(responses), expected)
    assert float(expected[3]) == pytest.approx(2 * scale**2)
    assert not (found.reliabilities - 1).abs().lt(0.05).all()

"""Bradley-Terry scores against an independent optimiser, a closed form, and simulated comparisons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from rlhf_lightning.functional.bradley_terry import bradley_terry, win_probability

WINS = torch.tensor([[0.0, 12, 7, 9], [5, 0, 8, 3], [6, 4, 0, 11], [2, 9, 3, 0]])
TIES = torch.tensor([[0.0, 3, 4, 1], [3, 0, 2, 5], [4, 2, 0, 2], [1, 5, 2, 0]])


def by_scipy(wins: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, float]:
    """Davidson's likelihood, written again, under BFGS."""
    count = len(wins)

    def loss(x: np.ndarray) -> float:
        s, nu = np.exp(x[:count]), np.exp(x[count])
        total = 0.0
        for i in range(count):
            for j in range(i + 1, count):
                d = s[i] + s[j] + nu * math.sqrt(s[i] * s[j])
                total -= wins[i, j] * math.log(s[i] / d) + wins[j, i] * math.log(s[j] / d)
                total -= ties[i, j] * math.log(nu * math.sqrt(s[i] * s[j]) / d)
        return total + x[:count].sum() ** 2

    found = minimize(loss, np.zeros(count + 1), method="BFGS", options={"gtol": 1e-9})
    return found.x[:count] - found.x[:count].mean(), float(np.exp(found.x[count]))


def test_scores_and_ties_are_those_of_an_independent_optimiser() -> None:
    found = bradley_terry(WINS, TIES, ridge=0.0)
    scores, tie = by_scipy(WINS.double().numpy(), TIES.double().numpy())
    assert found.scores.numpy() == pytest.approx(scores, abs=1e-4)
    assert found.tie == pytest.approx(tie, abs=1e-4)
    assert float(found.scores.sum()) == pytest.approx(0, abs=1e-9)


def test_two_items_without_ties_have_the_log_odds_and_its_error() -> None:
    found = bradley_terry(torch.tensor([[0.0, 30], [10, 0]]), ridge=0.0)
    assert float(found.scores[0] - found.scores[1]) == pytest.approx(math.log(3), abs=1e-6)
    # the error of the log odds is √(1/30 + 1/10); each score has half of it
    assert float(found.errors[0]) == pytest.approx(math.sqrt(1 / 30 + 1 / 10) / 2, abs=1e-4)
    low, high = (bound - float(found.scores[0]) for bound in found.interval(0))
    assert -low == pytest.approx(high) == pytest.approx(1.96 * float(found.errors[0]), abs=1e-4)
    assert found.tie == 0.0
    assert win_probability(math.log(3)) == pytest.approx(0.75)


@pytest.mark.parametrize(("options", "ridge"), [({"ridge": 3.0}, 3.0), ({}, 0.01)])
def test_the_ridge_bounds_the_scores_of_two_items(options: dict[str, Any], ridge: float) -> None:
    found = bradley_terry(torch.tensor([[0.0, 30], [1, 0]]), **options)
    first = float(found.scores[0])
    # where the gradient is 0: wins beyond those expected are the ridge times the score
    assert 30 - 31 * win_probability(2 * first) == pytest.approx(ridge * first, abs=1e-4)
    assert found.reliabilities.tolist() == [1.0]


def test_ties_alone_leave_all_equal() -> None:
    found = bradley_terry(torch.zeros(3, 3), torch.full((3, 3), 10.0))
    assert found.scores.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_an_item_that_never_loses_has_a_finite_score() -> None:
    found = bradley_terry(torch.tensor([[0.0, 20, 20], [0, 0, 10], [0, 10, 0]]))
    assert found.scores.isfinite().all()
    assert float(found.scores[0]) > 2
    assert found.errors[0] > found.errors[1]


def test_intervals_cover_the_truth() -> None:
    truth = torch.tensor([0.8, 0.1, -0.9], dtype=torch.float64)
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        wins = torch.zeros(3, 3)
        for i in range(3):
            for j in range(i + 1, 3):
                count = float(torch.rand(60, generator=generator).lt(win_probability(float(truth[i] - truth[j]))).sum())
                wins[i, j], wins[j, i] = count, 60 - count
        found = bradley_terry(wins)
        covered += sum(found.interval(k)[0] <= float(truth[k]) <= found.interval(k)[1] for k in range(3))
    assert 0.90 <= covered / 300 <= 0.99


ONE_NEGATIVE, ONE_INFINITE = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([[0.0, math.inf], [1.0, 0.0]])


@pytest.mark.parametrize("wins", [torch.zeros(2, 3), torch.zeros(3), ONE_NEGATIVE, ONE_INFINITE])
def test_matrices_of_another_form_are_refused(wins: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"wins (has shape|and ties must)"):
        bradley_terry(wins)


def test_the_variance_of_a_difference_is_that_of_the_log_odds_in_each_connected_group() -> None:
    wins = torch.zeros(5, 5)
    for i, j, won, lost in ((0, 3, 30, 10), (1, 4, 20, 5)):  # the third item is compared with none
        wins[i, j], wins[j, i] = won, lost
    found = bradley_terry(wins, ridge=1e-9)
    variances = found.difference_variances(torch.tensor([[0, 3], [3, 0], [4, 1]])).tolist()
    assert variances == pytest.approx([1 / 30 + 1 / 10, 1 / 30 + 1 / 10, 1 / 20 + 1 / 5], rel=1e-4)

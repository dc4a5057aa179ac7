"""Disagreement of an ensemble, and how well scores separate labels, at their edges."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional.ensembles import bootstrap_weights, disagreement
from rlhf_lightning.functional.statistics import separation, win_rate

pytestmark = pytest.mark.unit


def test_disagreement_skips_a_response_that_one_reward_did_not_score() -> None:
    scores = [[0.0, 1.0, math.nan, 3.0], [5.0, 1.0, 2.0, 3.0]]
    assert disagreement(scores) == disagreement([[0.0, 1.0, 3.0], [5.0, 1.0, 3.0]]) > 0
    assert math.isnan(disagreement([[0.0, math.nan], [1.0, 2.0]]))


def test_rewards_of_another_scale_agree() -> None:
    assert disagreement([[0.0, 1.0, 3.0], [10.0, 30.0, 70.0]]) == pytest.approx(0.0, abs=1e-12)
    assert disagreement([[0.0, 1.0], [1.0, 0.0]]) == pytest.approx(1.0)


@pytest.mark.parametrize("label", [True, False])
def test_separation_needs_both_labels(label: bool) -> None:
    assert math.isnan(separation(torch.tensor([1.0, 2.0]), torch.tensor([label, label])))


def test_a_win_rate_needs_as_many_scores_on_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        win_rate([1.0, 2.0], [0.0])


def test_disagreement_is_the_deviation_of_standardised_scores() -> None:
    table = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, 1.0], [1.0, 1.0, 7.0]], dtype=torch.float64)
    standardised = (table - table.mean(1, keepdim=True)) / table.var(1, correction=0, keepdim=True).sqrt()
    expected = standardised.var(0, correction=0).sqrt().mean()
    assert disagreement(table.tolist()) == pytest.approx(float(expected))
    assert disagreement([[3.0, 3.0], [3.0, 3.0]]) == 0.0  # no deviation to divide by


def test_rows_have_bootstrap_weights_of_their_own() -> None:
    seeds = range(-150, 150)
    weights = {tuple(bootstrap_weights(seed, 40).tolist()) for seed in seeds}
    assert len(weights) == len(seeds)
    assert bootstrap_weights(5, 40).equal(bootstrap_weights(5 - 2**63, 40))

"""Disagreement of an ensemble, and how well scores separate labels, at their edges."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional.ensembles import disagreement
from rlhf_lightning.functional.statistics import separation

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

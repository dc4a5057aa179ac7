"""The loss of a reward model: every comparison of every group, one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.types import PreferenceBatch

RATINGS = [2.0, 1.0, 0.0, 1.0, 0.0, 3.0, 3.0, 0.0, 5.0]
"""A ranking of three, a pair, a group with a tie, and a response with nothing beside it."""
GROUPS = [0, 0, 0, 1, 1, 2, 2, 2, 3]
MARGINS = [0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
SCORES = [0.3, -1.2, 0.8, 2.0, 1.9, -0.4, 0.6, 0.1, 7.0]


def batch(margins: list[float] = MARGINS) -> PreferenceBatch:
    rows = len(RATINGS)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    tokens = torch.zeros(rows, 4, dtype=torch.long)
    return PreferenceBatch(
        tokens, mask, mask, torch.tensor(GROUPS), ~mask[:, 0], torch.tensor(RATINGS), torch.tensor(margins)
    )


def stage(centering: float = 0.0) -> RewardStage:
    return RewardStage(ModelConfig("none"), centering=centering)


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_every_comparison_counts_and_every_group_weighs_one(centering: float) -> None:
    """Ouyang et al. 2022, eq. 1: the mean over the K(K-1)/2 comparisons of a prompt, then over prompts."""
    expected, count = 0.0, 0
    for group in range(4):
        rows = [i for i, g in enumerate(GROUPS) if g == group]
        losses = [
            math.log1p(math.exp(-(SCORES[a] - SCORES[b] - MARGINS[a]))) + centering * (SCORES[a] + SCORES[b]) ** 2
            for a in rows
            for b in rows
            if RATINGS[a] > RATINGS[b]
        ]
        expected += sum(losses) / len(losses) if losses else 0.0
        count += bool(losses)
    found = stage(centering).loss_of_scores(torch.tensor(SCORES), batch())
    assert count == 3
    assert float(found.loss) == pytest.approx(expected, rel=1e-6)
    assert float(found.means["loss/policy"][1]) == count
    right = [(0, 1), (3, 4), (6, 7)]  # (0, 2), (1, 2) and (5, 7) are judged wrongly
    assert [float(x) for x in found.means["preference/accuracy"]] == [len(right), 6]


def test_scores_end_at_the_reward_that_judged() -> None:
    """With every pair judged as Bradley and Terry say, the best scores are the true ones up to a constant."""
    true = torch.tensor([0.0, 1.0, -0.7, 2.0])
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    mask = torch.ones(2, 2, dtype=torch.bool)
    one = PreferenceBatch(
        torch.zeros(2, 4).long(),
        mask,
        mask,
        torch.zeros(2).long(),
        ~mask[:, 0],
        torch.tensor([1.0, 0.0]),
        torch.zeros(2),
    )
    found = torch.zeros(4, requires_grad=True)
    reward_stage, optimizer = stage(), torch.optim.LBFGS([found], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = torch.stack([reward_stage.loss_of_scores(found[pair], one).loss for pair in pairs])
        loss = (torch.sigmoid(true[pairs[:, 0]] - true[pairs[:, 1]]) * losses).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(found.detach() - found.detach().mean(), true - true.mean(), atol=1e-3, rtol=0)


def test_a_soft_label_counts_in_both_orders_and_the_margin_in_each() -> None:
    one = replace(batch(), probabilities=torch.tensor([1.0, 1.0, 1.0, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0]))
    certain, soft = (stage(0.01).losses(torch.tensor(SCORES), data) for data in (batch(), one))
    right, wrong = (math.log1p(math.exp(-(sign * (SCORES[3] - SCORES[4]) - MARGINS[3]))) for sign in (1, -1))
    assert soft[[0, 2]].tolist() == certain[[0, 2]].tolist()
    assert float(soft[1]) == pytest.approx(0.7 * right + 0.3 * wrong + 0.01 * (SCORES[3] + SCORES[4]) ** 2)


def test_a_pair_of_probability_one_half_counts_in_no_accuracy() -> None:
    one = replace(batch(), probabilities=torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]))
    found = stage().loss_of_scores(torch.tensor(SCORES), one)
    assert [float(x) for x in found.means["preference/accuracy"]] == [2, 5]
    assert float(found.means["preference/margin"][1]) == 6


def test_calibration_is_against_the_probabilities() -> None:
    """Ten bins, every comparison in both orders; a bin's error is the distance of mean score and mean probability."""
    one, logit = stage(), [math.log(p / (1 - p)) for p in (0.95, 0.75, 0.75)]
    one.compared = [torch.tensor([[logit[0]], [1.0]]), torch.tensor([logit[1:], [0.5, 0.8]])]
    found = one.further_metrics()
    assert found["preference/accuracy"] == 1.0
    assert found["preference/calibration_error"] == pytest.approx((0.05 + 2 * abs(0.75 - 0.65)) / 3, abs=1e-6)
    one.compared = [torch.tensor([[0.3], [0.5]])]
    assert one.further_metrics().keys() == {"preference/calibration_error"}
    assert one.compared == []

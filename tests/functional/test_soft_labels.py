"""Soft labels: probability 1 is the loss without them bit for bit, 0 swaps the pair, ½ pulls the two responses together."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.functional.preference_losses import (
    PreferenceLoss,
    bradley_terry_loss,
    log_odds,
    odds_ratio_loss,
    preference_loss,
    simpo_loss,
    soft,
)

PairLoss = Callable[..., Tensor]
"""(chosen, rejected, p=…) → one loss per pair."""
CHOSEN, REJECTED = torch.tensor([1.5, -2.0, 0.3, 4.0]), torch.tensor([-1.0, 0.7, 0.3, 3.9])
LENGTHS = torch.tensor([3, 1, 2, 4])


def preference(kind: PreferenceLoss, smoothing: float = 0.0, robust: bool = False) -> PairLoss:
    def loss(chosen: Tensor, rejected: Tensor, **p: Tensor) -> Tensor:
        return preference_loss(chosen, rejected, LENGTHS, LENGTHS, 0.7, kind, smoothing, robust=robust, **p)

    return loss


def reward(margin: float, centering: float) -> PairLoss:
    return partial(bradley_terry_loss, margin=torch.tensor(margin), centering=centering)


def simpo(chosen: Tensor, rejected: Tensor, **p: Tensor) -> Tensor:
    return simpo_loss(chosen, rejected, 0.7, 0.4, **p)


def odds_ratio(chosen: Tensor, rejected: Tensor, **p: Tensor) -> Tensor:
    """Of responses whose log odds are the given numbers."""
    return odds_ratio_loss(logsigmoid(chosen), logsigmoid(rejected), **p)


LOSSES: dict[str, PairLoss] = {
    **{kind: preference(kind) for kind in get_args(PreferenceLoss)},
    **{f"{kind}, smoothed": preference(kind, 0.1) for kind in get_args(PreferenceLoss)},
    **{f"{kind}, robust": preference(kind, 0.1, robust=True) for kind in get_args(PreferenceLoss)},
    "simpo": simpo,
    "odds ratio": odds_ratio,
    "reward": reward(0.0, 0.0),
    "reward with margin, centred": reward(0.4, 0.05),
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def with_gradient(loss: PairLoss, chosen: Tensor, rejected: Tensor, **options: Tensor) -> tuple[Tensor, ...]:
    leaves = [chosen.clone().requires_grad_(), rejected.clone().requires_grad_()]
    found = loss(*leaves, **options)
    return found.detach(), *torch.autograd.grad(found.sum(), leaves)


@EVERY
def test_probability_one_is_the_loss_without_soft_labels_bit_by_bit(loss: PairLoss) -> None:
    with_ones = with_gradient(loss, CHOSEN, REJECTED, p=torch.ones(4))
    for one, other in zip(with_ones, with_gradient(loss, CHOSEN, REJECTED), strict=True):
        assert torch.equal(one, other)


def test_without_soft_labels_the_losses_are_their_formulas_bit_by_bit() -> None:
    plain: dict[str, PairLoss] = {
        "sigmoid": lambda c, j: -logsigmoid(0.7 * (c - j)),
        "sigmoid, smoothed": lambda c, j: -0.9 * logsigmoid(0.7 * (c - j)) - 0.1 * logsigmoid(-0.7 * (c - j)),
        "ipo": lambda c, j: (c - j - 1 / 1.4).square(),
        "ipo_length_normalized": lambda c, j: (c / LENGTHS - j / LENGTHS - 1 / 1.4).square(),
        "hinge": lambda c, j: (1 - 0.7 * (c - j)).relu(),
        "apo_zero": lambda c, j: 1 - (torch.sigmoid(0.7 * c) - torch.sigmoid(0.7 * j)),
        "simpo": lambda c, j: -logsigmoid(0.7 * (c - j) - 0.4),
        "reward with margin, centred": lambda c, j: -logsigmoid(c - j - 0.4) + 0.05 * (c + j).square(),
    }
    for name, formula in plain.items():
        found = with_gradient(LOSSES[name], CHOSEN, REJECTED, p=torch.ones(4))
        for one, other in zip(found, with_gradient(formula, CHOSEN, REJECTED), strict=True):
            assert torch.equal(one, other), name


@EVERY
def test_probability_zero_swaps_the_pair(loss: PairLoss) -> None:
    value, chosen, rejected = with_gradient(loss, CHOSEN, REJECTED, p=torch.zeros(4))
    swapped, other_rejected, other_chosen = with_gradient(loss, REJECTED, CHOSEN)
    for one, other in ((value, swapped), (chosen, other_chosen), (rejected, other_rejected)):
        torch.testing.assert_close(one, other)


@EVERY
@pytest.mark.parametrize("p", [0.5, 0.6, 0.85])
def test_a_soft_label_is_the_expectation_over_both_orders(loss: PairLoss, p: float) -> None:
    """By enumeration: in a share p of the labels the chosen response is better, in the others the rejected one."""
    soft_label = with_gradient(loss, CHOSEN, REJECTED, p=torch.full((4,), p))
    right, wrong = with_gradient(loss, CHOSEN, REJECTED), with_gradient(loss, REJECTED, CHOSEN)
    wrong = (wrong[0], wrong[2], wrong[1])
    for found, one, other in zip(soft_label, right, wrong, strict=True):
        torch.testing.assert_close(found, p * one + (1 - p) * other)


CONVEX = {name: loss for name, loss in LOSSES.items() if not name.startswith(("hinge", "apo_zero"))}


@pytest.mark.parametrize("loss", CONVEX.values(), ids=CONVEX)
def test_one_half_pulls_the_two_together(loss: PairLoss) -> None:
    """The hinge does so beyond its margin alone, and APO-zero, which is linear in its margin, has no gradient left."""
    _, chosen, rejected = with_gradient(loss, CHOSEN, REJECTED, p=torch.full((4,), 0.5))
    step_apart = -(chosen - rejected)  # of the difference under gradient descent
    far = (CHOSEN - REJECTED).abs() > 0.01
    assert torch.equal(step_apart.sign()[far], -(CHOSEN - REJECTED).sign()[far])


def test_one_half_in_losses_that_are_not_strictly_convex() -> None:
    half = torch.full((4,), 0.5)
    assert with_gradient(LOSSES["apo_zero"], CHOSEN, REJECTED, p=half)[1].tolist() == [0.0] * 4
    assert (-with_gradient(LOSSES["hinge"], CHOSEN, REJECTED, p=half)[1]).sign().tolist() == [-1, 1, 0, 0]


@pytest.mark.parametrize("kind", get_args(PreferenceLoss))
def test_the_robust_loss_is_in_expectation_that_of_the_true_labels(kind: PreferenceLoss) -> None:
    """A fraction ε of labels is flipped; the mean over both cases is the loss without them, in value and gradient."""
    robust, plain = preference(kind, 0.2, robust=True), preference(kind)
    noisy = with_gradient(robust, CHOSEN, REJECTED, p=torch.full((4,), 0.8))
    for found, wanted in zip(noisy, with_gradient(plain, CHOSEN, REJECTED), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_log_odds_by_hand() -> None:
    odds = log_odds(torch.tensor([0.5, 0.9, 0.001], dtype=torch.float64).log()).exp()
    torch.testing.assert_close(odds, torch.tensor([1.0, 9.0, 0.001 / 0.999], dtype=torch.float64))
    certain = torch.zeros(2, requires_grad=True)
    log_odds(certain).sum().backward()  # type: ignore[no-untyped-call]
    assert certain.grad is not None
    assert certain.grad.tolist() == [0.0, 0.0]  # no NaN, also where the row is masked later
    assert float(log_odds(torch.zeros((), dtype=torch.float64)).exp()) == pytest.approx(1e6, rel=1e-5)


@pytest.mark.parametrize("p", [0.5, 0.7, 0.95])
def test_where_the_loss_is_smallest(p: float) -> None:
    """βΔ = logit p for the sigmoid, Δ = (2p - 1)/(2β) for IPO; with smoothing of p(1 - ε) + (1 - p)ε."""
    beta, odds = 0.7, lambda q: math.log(q / (1 - q))
    smoothed = p * 0.9 + (1 - p) * 0.1
    places = {
        "sigmoid": odds(p) / beta,
        "sigmoid, smoothed": odds(smoothed) / beta,
        "ipo": (2 * p - 1) / (2 * beta),
        "ipo, smoothed": (2 * smoothed - 1) / (2 * beta),
        "reward": odds(p),
    }
    for name, place in places.items():
        chosen = torch.full((4,), place, dtype=torch.float64, requires_grad=True)
        LOSSES[name](chosen, torch.zeros(4).double(), p=torch.full((4,), p, dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
        assert chosen.grad is not None
        torch.testing.assert_close(chosen.grad, torch.zeros(4).double(), atol=1e-9, rtol=0)


def test_soft_takes_any_loss_of_a_margin() -> None:
    found = soft(lambda margin: (2 - margin) ** 3, torch.tensor([1.0, -1.0]), torch.tensor([0.25, 1.0]))
    assert found.tolist() == [0.25 * 1 + 0.75 * 27, 27]

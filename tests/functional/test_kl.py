"""The three estimators against exact KL on a small vocabulary, in value and in gradient."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.functional.kl import kl_estimate, ratio_weighted


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)


def exact(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    logprobs = policy.log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference.log_softmax(-1))).sum()


def expected(policy: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Expectation over the policy's own samples, whose probabilities are no function of the parameters."""
    return (policy.log_softmax(-1).exp().detach() * values).sum()


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_values(logits: tuple[torch.Tensor, torch.Tensor], estimator: str, unbiased: bool) -> None:
    policy, reference = logits
    found = expected(policy, kl_estimate(policy.log_softmax(-1), reference.log_softmax(-1), estimator))  # type: ignore[arg-type]
    assert bool(torch.isclose(found, exact(policy, reference))) is unbiased


@pytest.mark.parametrize(
    ("estimator", "weighted", "right"),
    [("k1", False, False), ("k2", False, True), ("k3", False, False), ("k1", True, True), ("k3", True, True)],
)
def test_gradients_as_a_loss(
    logits: tuple[torch.Tensor, torch.Tensor], estimator: str, weighted: bool, right: bool
) -> None:
    policy, reference = logits
    logprobs = policy.log_softmax(-1)
    loss = kl_estimate(logprobs, reference.log_softmax(-1), estimator)  # type: ignore[arg-type]
    if weighted:
        loss = ratio_weighted(loss, logprobs, logprobs.detach())
    (found,) = torch.autograd.grad(expected(policy, loss), policy, retain_graph=True)
    (wanted,) = torch.autograd.grad(exact(policy, reference), policy)
    assert torch.allclose(found, wanted) is right
    if estimator == "k1" and not weighted:
        torch.testing.assert_close(found, torch.zeros_like(found))


def test_k3_is_never_negative_and_zero_only_where_equal() -> None:
    difference = torch.linspace(-3, 3, 31)
    k3 = kl_estimate(difference, torch.zeros(31), "k3")
    assert bool((k3 >= 0).all())
    assert int((k3.abs() < 1e-6).sum()) == 1

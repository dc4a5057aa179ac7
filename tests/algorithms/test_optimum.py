"""Where learning from preferences ends: the policy that maximises reward under the KL penalty, in closed form."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.types import PolicyOutput, Rollout

VOCABULARY, LENGTH = 3, 2
RESPONSES = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
PAIRS = torch.tensor(list(itertools.permutations(range(len(RESPONSES)), 2)))
"""Every response preferred to every other."""


def token_logprobs(logits: Tensor) -> Tensor:
    """[responses, tokens]: of a table of logits for the first token, and for the second given the first."""
    states = torch.stack([torch.zeros(len(RESPONSES)).long(), 1 + RESPONSES[:, 0]], 1)
    return logits.log_softmax(-1)[states].gather(-1, RESPONSES[..., None]).squeeze(-1)


def expected_loss(algorithm: DPO, logits: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
    """Of pairs that are drawn evenly and judged as Bradley and Terry say: a better b with probability σ(r_a - r_b)."""
    rows = PAIRS.flatten()
    mask = torch.ones(len(rows), LENGTH, dtype=torch.bool)
    reference_rows = token_logprobs(reference)[rows].detach()
    scores = torch.tensor([1.0, 0.0]).repeat(len(PAIRS)).double()
    groups = torch.arange(len(PAIRS)).repeat_interleave(2)
    data = Rollout(RESPONSES[rows], mask, mask, groups, ~mask[:, 0], reference_rows, reference_rows, scores, None)
    batch, now = algorithm.prepare(data), token_logprobs(logits)[rows]
    losses = [
        algorithm.loss(PolicyOutput(now[i : i + 2]), batch.rows(torch.tensor([i, i + 1]))).loss
        for i in range(0, len(rows), 2)
    ]
    return (torch.sigmoid(rewards[PAIRS[:, 0]] - rewards[PAIRS[:, 1]]) * torch.stack(losses)).mean()


@pytest.fixture
def tables() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1 + VOCABULARY, VOCABULARY).double(), torch.randn(len(RESPONSES)).double()


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_ends_at_the_reference_tilted_by_the_reward(tables: tuple[Tensor, Tensor], beta: float) -> None:
    """π ∝ ref · exp(r / β) (Rafailov et al. 2023, eq. 4), from the reference on and by gradients alone."""
    reference, rewards = tables
    algorithm, logits = DPO(beta=beta), reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(algorithm, logits, reference, rewards)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = token_logprobs(logits).sum(-1).exp()
    wanted = (token_logprobs(reference).sum(-1) + rewards / beta).softmax(-1)
    torch.testing.assert_close(found.detach(), wanted, atol=1e-4, rtol=0)
    assert (found - token_logprobs(reference).sum(-1).exp()).abs().max() > 0.05  # it was not there from the start

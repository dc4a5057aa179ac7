"""The gradient of a step does not depend on how the step is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_lightning.training.loss_step import LossStep
from rlhf_lightning.types import InstructionBatch, LossOutput

TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9]])


def batch(rows: torch.Tensor, weight: float) -> InstructionBatch:
    mask = torch.ones(len(rows), 2, dtype=torch.bool)
    groups = torch.arange(len(rows))
    return InstructionBatch(rows, mask[:, :1], mask, groups, ~mask[:, 0], torch.tensor(weight))


def gradient(module: Any, step: LossStep, batches: list[InstructionBatch]) -> torch.Tensor:
    """As Lightning takes it: each loss divided by the accumulation."""

    def loss(rows: InstructionBatch) -> LossOutput:
        total = (rows.tokens * module.weight.square()).sum()
        return LossOutput(total, {"loss/policy": (total.detach(), torch.tensor(len(rows)))})

    for each in batches:
        last = step.backward(each, loss, torch.arange(len(each)), [])
        (last / step.accumulate).backward()
    return module.weight.grad.clone()


@pytest.mark.parametrize(("accumulate", "limit", "passes"), [(1, None, 1), (1, 6, 2), (2, None, 2), (2, 3, 4)])
def test_gradient_is_that_of_the_undivided_loss_over_the_weight(
    module: Callable[..., Any], accumulate: int, limit: int | None, passes: int
) -> None:
    own = module(accumulate_grad_batches=accumulate)
    step = LossStep(own, limit)
    batches = [batch(rows, 8.0) for rows in TOKENS.chunk(accumulate)]
    expected = 2 * own.weight.detach() * TOKENS.sum(0) / 8
    torch.testing.assert_close(gradient(own, step, batches), expected)
    done, norm = step.finish()
    assert len(done) == passes
    assert float(norm) == pytest.approx(float(expected.norm()))  # type: ignore[arg-type]
    assert step.micro_batches == []


def test_lightnings_mean_over_ranks_is_undone(module: Callable[..., Any]) -> None:
    alone, three = module(), module(world_size=3)
    one = gradient(alone, LossStep(alone, None), [batch(TOKENS, 8.0)])
    torch.testing.assert_close(gradient(three, LossStep(three, None), [batch(TOKENS, 8.0)]) / 3, one)


def test_a_step_without_gradients_has_no_norm(module: Callable[..., Any]) -> None:
    step = LossStep(module(), None)
    assert step.finish() == ([], None)

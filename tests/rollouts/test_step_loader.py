"""The loader of recorded rows: weights of steps, and resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf_lightning.rollouts.step_loader import StepLoader
from rlhf_lightning.types import InstructionBatch
from tests.rollouts.loaders import source


def instructions(rows: Any) -> InstructionBatch:
    count = len(rows)
    lengths = torch.tensor([1 + int(row["prompt"]) % 4 for row in rows])
    mask = torch.arange(4)[None] < lengths[:, None]
    number = torch.tensor([int(row["prompt"]) for row in rows])
    prompt = torch.ones(count, 1, dtype=torch.bool)
    return InstructionBatch(number[:, None].expand(count, 5), prompt, mask, number, mask[:, 0])


def steps() -> StepLoader:
    return StepLoader(source(), instructions, lambda batch: batch.mask.sum(), accumulate=3)


def test_batches_have_the_weight_of_their_step() -> None:
    batches = list(steps())
    assert len(batches) == 4  # the last step has one batch
    assert float(batches[0].weight) == sum(int(batch.mask.sum()) for batch in batches[:3])
    assert batches[0].weight == batches[2].weight
    assert float(batches[3].weight) == int(batches[3].mask.sum())


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_step_loader_resumes_inside_a_step(stop: int) -> None:
    whole = [(batch.groups.tolist(), float(batch.weight)) for batch in steps()]
    stopped = steps()
    served = iter(stopped)
    first = [(batch.groups.tolist(), float(batch.weight)) for batch in (next(served) for _ in range(stop))]
    resumed = steps()
    resumed.load_state_dict(stopped.state_dict())
    rest = [(batch.groups.tolist(), float(batch.weight)) for batch in resumed] if stop < 4 else []
    assert first + rest == whole

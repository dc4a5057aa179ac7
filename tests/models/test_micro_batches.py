"""Micro-batches: as few as the limit allows, loss groups whole, prompts counted once, as many on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.models import micro_batches as module
from rlhf_lightning.models.micro_batches import micro_batches
from rlhf_lightning.types import Rows
from tests.holes import with_holes

NUMBERED = torch.arange(12)


def rows_of(prompts: list[int], responses: list[int], groups: list[int]) -> Rows:
    """Rows whose every token is their number."""
    p, t = torch.tensor(prompts), torch.tensor(responses)
    width, length = max(prompts), max(responses)
    tokens = torch.arange(len(p))[:, None].expand(-1, width + length).clone()
    prompt_mask = torch.arange(width) >= width - p[:, None]
    return Rows(
        tokens, prompt_mask, torch.arange(length) < t[:, None], torch.tensor(groups), torch.zeros(len(p)).bool()
    )


@dataclass(frozen=True)
class Measured(Rows):
    """Rows with a vector per response token."""

    features: Tensor
    """int64 [B, T, 2]."""


def numbers(micro_batch: Rows) -> list[int]:
    return sorted(micro_batch.tokens[:, 0].tolist())


def tokens_of(micro_batch: Rows, shares: bool = True) -> int:
    """Tokens that a pass over a micro-batch computes."""
    lengths = micro_batch.reach
    if not shares:
        return len(micro_batch) * int((lengths + micro_batch.prompt_mask.sum(-1)).max())
    heads = [int(torch.nonzero(micro_batch.groups == group)[0]) for group in micro_batch.groups.unique()]
    return int(lengths.sum() + micro_batch.prompt_mask.sum(-1)[heads].sum())


@pytest.fixture(params=["whole", "holes"])
def rows(request: pytest.FixtureRequest) -> Rows:
    """Four prompts with three responses each: 23, 18, 28 and 17 tokens."""
    prompts, responses = [9, 9, 9, 5, 5, 5, 7, 7, 7, 3, 3, 3], [4, 8, 2, 6, 6, 1, 9, 9, 3, 5, 2, 7]
    rows = rows_of(prompts, responses, [group for group in range(4) for _ in range(3)])
    return with_holes(rows) if request.param == "holes" else rows


@pytest.mark.parametrize(("limit", "count"), [(None, 1), (86, 1), (85, 2), (45, 2), (44, 3), (28, 4)])
def test_a_prompt_and_its_responses_stay_in_one_of_as_few_micro_batches_as_possible(
    rows: Rows, limit: int | None, count: int
) -> None:
    found = micro_batches(rows, NUMBERED, limit, shares=True)
    assert len(found) == count
    assert sorted(row for micro_batch in found for row in numbers(micro_batch)) == list(range(12))
    assert all(len(micro_batch.groups.unique()) * 3 == len(micro_batch) for micro_batch in found)
    assert all(tokens_of(micro_batch) <= (limit or 86) for micro_batch in found)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("limit", [1, 12, 16, 20, 27])
def test_a_loss_group_is_never_split_and_is_alone_where_it_exceeds_the_limit(
    rows: Rows, limit: int, group_size: int, shares: bool
) -> None:
    found = micro_batches(rows, NUMBERED // group_size, limit, shares)
    assert sorted(row for micro_batch in found for row in numbers(micro_batch)) == list(range(12))
    for micro_batch in found:
        loss_groups, counts = (torch.tensor(numbers(micro_batch)) // group_size).unique(return_counts=True)
        assert counts.tolist() == [group_size] * len(loss_groups)
    longest = max(tokens_of(rows.rows(NUMBERED // group_size == group), True) for group in range(12 // group_size))
    if shares:
        assert all(tokens_of(micro_batch) <= max(limit, longest) for micro_batch in found)
    else:
        assert all(tokens_of(micro_batch, False) <= max(limit, 17 * group_size) for micro_batch in found)


def test_every_tensor_is_trimmed_and_keeps_its_rows(rows: Rows) -> None:
    wide = Measured(**rows.tensors(), features=torch.arange(12 * 9 * 2).view(12, 9, 2))
    for micro_batch in micro_batches(wide, NUMBERED, 20, shares=True):
        index = micro_batch.tokens[:, 0]
        width = int(micro_batch.reach.max())
        assert torch.equal(micro_batch.mask, rows.mask[index, :width])
        assert torch.equal(micro_batch.prompt_mask.sum(-1), rows.prompt_mask.sum(-1)[index])
        assert torch.equal(micro_batch.groups, rows.groups[index])
        assert torch.equal(micro_batch.features, wide.features[index, :width])
        assert micro_batch.prompt_mask.any(0).all()


def test_a_rank_that_needs_fewer_micro_batches_takes_as_many_as_the_others(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: Any = rows.rows(NUMBERED < 4)
    alone = micro_batches(few, NUMBERED[:4], 24, shares=True)
    assert len(alone) == 2
    maxima: list[int] = []

    def maximum_with_a_longer_rank(value: Tensor) -> Tensor:
        maxima.append(int(value))
        return value + 3  # the other rank has 3 tokens more, and needs 3 micro-batches more

    monkeypatch.setattr(module, "all_max", maximum_with_a_longer_rank)
    found = micro_batches(few, NUMBERED[:4], 24, shares=True)
    assert set(maxima) == {few.tokens.numel(), len(alone)}  # the ranks agree on nothing else
    assert len(found) == 5
    assert sorted(row for micro_batch in found if micro_batch.mask.any() for row in numbers(micro_batch)) == [
        0,
        1,
        2,
        3,
    ]
    assert all(micro_batch.mask.any() or numbers(micro_batch) == [0] for micro_batch in found)

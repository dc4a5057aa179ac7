"""The state of a buffer is that of all ranks, and any number of ranks resumes from it with the same rows in the same steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_lightning.rollouts import buffer_state
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.types import Batch
from tests.rollouts.loaders import buffer, full

Ranks = Callable[[int, int], None]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """`ranks(1, 3)` makes this process rank 1 of 3."""

    def become(rank: int, count: int) -> None:
        monkeypatch.setattr(buffer_state, "rank", lambda: rank)
        monkeypatch.setattr(buffer_state, "world_size", lambda: count)

    return become


def shard(rank: int, count: int, **options: Any) -> RolloutBuffer:
    """The buffer of one rank, whose prompts are every n-th of six with two responses each; padded as little as it needs."""
    batch = full()
    own = batch.rows(batch.groups % count == rank)
    if not len(own):
        own = batch.rows(batch.groups == 0)
        own.mask[:] = False
    first = int((~own.prompt_mask.any(0)).sum())
    tensors = {**own.tensors(), "tokens": own.tokens[:, first:], "prompt_mask": own.prompt_mask[:, first:]}
    tensors.pop("weight")
    return buffer(Batch(**{**NONE, **tensors}), **options)


NONE: Any = {"values": None, "advantages": None, "returns": None}


def gathered(buffers: list[RolloutBuffer], monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> dict[str, Any]:
    parts: list[Any] = []
    monkeypatch.setattr(buffer_state, "all_gather", lambda tensors: parts.append(tensors) or [tensors])
    for each in buffers:
        each.state_dict()
    monkeypatch.setattr(buffer_state, "all_gather", lambda _: parts)
    ranks(0, len(buffers))
    return buffers[0].state_dict()


def steps(buffers: list[RolloutBuffer]) -> list[list[int]]:
    """The rows of each step of all ranks; a row's tokens are its number."""
    count = len(buffers[0])
    return [
        sorted(
            row
            for each in buffers
            for row in each.batch.tokens[each._minibatch(step)].amax(-1).tolist()
            if each.batch.mask[each._minibatch(step)].any()
        )
        for step in range(buffers[0].cursor, count)
    ]


@pytest.mark.parametrize("after", [1, 2, 3, 7])
@pytest.mark.parametrize("before", [1, 2, 4, 7])
def test_any_number_of_ranks_takes_the_steps_of_any_other(
    before: int, after: int, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = [shard(rank, before) for rank in range(before)]
    for each in saved:
        each.cursor = 2
    expected, state = steps(saved), gathered(saved, monkeypatch, ranks)
    assert state["rows"]["groups"].tolist() == full().groups.tolist()
    assert state["cursor"] == 2
    resumed = []
    for rank in range(after):
        ranks(rank, after)
        resumed.append(buffer(full(1)))
        resumed[-1].load_state_dict(state)
    assert steps(resumed) == expected
    assert sorted(row for step in expected[-3:] for row in step) == list(range(12))
    held = [set(each.batch.groups.tolist()) for each in resumed if each.batch.mask.any()]
    assert sum(map(len, held)) == len(set().union(*held)) == 6  # every prompt is on one rank
    for each in resumed:
        rows = each.batch.rows(each.batch.mask.any(-1))
        index = rows.tokens.amax(-1)
        for name, value in rows.tensors().items():
            whole = getattr(full(), name)
            if name == "tokens":
                assert ((value == index[:, None]) | ~torch.cat([rows.prompt_mask, torch.ones_like(rows.mask)], 1)).all()
            elif name != "weight":
                assert torch.equal(value, whole[index][..., -value.shape[-1] :] if value.dim() > 1 else whole[index])


def test_the_same_number_of_ranks_takes_back_its_own_rows_in_their_order(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = [shard(rank, 2) for rank in range(2)]
    saved[0].batch.groups[saved[0].batch.groups == 4] = (
        2**32 + 1
    )  # of a second request, in which this rank had an odd place
    state = gathered(saved, monkeypatch, ranks)
    for rank, each in enumerate(saved):
        ranks(rank, 2)
        again = buffer(full(1))
        again.load_state_dict(state)
        assert torch.equal(again.batch.groups, each.batch.groups)
        assert torch.equal(again.places, each.places)


def test_fields_that_are_not_per_token_keep_their_width(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = [shard(rank, 2) for rank in range(2)]
    for rank, each in enumerate(saved):
        batch, columns = each.batch, 4 - rank  # the responses of the second rank are shorter
        width = batch.prompt_mask.shape[1]
        tensors = {
            name: value[:, :columns] if name in ("mask", "logprobs", "reference_logprobs") else value
            for name, value in batch.tensors().items()
            if name != "weight"
        }
        tensors |= {"tokens": batch.tokens[:, : width + columns], "components": torch.ones(len(batch), 3)}
        saved[rank] = buffer(Batch(**{**NONE, **tensors}))
    rows = gathered(saved, monkeypatch, ranks)["rows"]
    assert rows["components"].shape == (12, 3)
    assert rows["places"].shape == (12, 2)
    assert rows["mask"].shape == rows["logprobs"].shape == (12, 4)
    assert rows["tokens"].shape[1] == rows["prompt_mask"].shape[1] + 4

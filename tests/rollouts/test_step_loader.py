"""The loader of recorded rows: weights of steps, and resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf_lightning.rollouts import row_source, step_loader
from rlhf_lightning.rollouts.step_loader import StepLoader, ValidationLoader
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


def numbers(loader: Any) -> list[list[int]]:
    return [batch.groups.tolist() for batch in loader]


def limited(limit: int, repeat: bool = False, accumulate: int = 3) -> StepLoader:
    return StepLoader(source(), instructions, lambda batch: batch.mask.sum(), accumulate, limit, repeat)


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_an_epoch_of_fewer_batches_continues_in_the_next(limit: int) -> None:
    loader = limited(limit)
    epochs = [numbers(loader) for _ in range(4)]
    single = source()
    assert epochs == [[[int(row["prompt"]) for row in single.next()] for _ in range(limit)] for _ in range(4)]
    assert len(loader) == 4  # what the source has


def test_the_last_step_of_a_limited_epoch_has_the_weight_of_its_own_batches() -> None:
    batches = list(limited(2))
    assert float(batches[0].weight) == float(batches[1].weight) == sum(int(batch.mask.sum()) for batch in batches)


def test_repeated_epochs_have_the_rows_of_the_first_and_others_do_not() -> None:
    loader, other = limited(2, repeat=True), limited(2)
    assert numbers(loader) == numbers(loader) == numbers(other)
    assert numbers(other) != numbers(loader)


def test_a_resumed_epoch_that_repeats_rows_does_not_start_over_inside() -> None:
    whole, stopped, resumed = limited(4, repeat=True), limited(4, repeat=True), limited(4, repeat=True)
    served = iter(stopped)
    next(served)
    resumed.load_state_dict(stopped.state_dict())
    assert numbers(resumed) == numbers(whole)[1:]


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_step_that_was_not_taken_is_repeated(stop: int) -> None:
    whole, stopped, resumed = numbers(steps()), steps(), steps()
    served = iter(stopped)
    for _ in range(stop):
        next(served)
    resumed.load_state_dict({**stopped.state_dict(), "again": True})
    assert numbers(resumed) == whole[3 if stop == 4 else 0 :]
    followed = steps()
    followed.load_state_dict({**stopped.state_dict(), "again": False})
    assert numbers(followed) == (whole[stop:] or numbers(stopped))


def test_a_finished_epoch_is_followed_by_the_next() -> None:
    stopped, resumed = steps(), steps()
    numbers(stopped)
    resumed.load_state_dict(stopped.state_dict())
    assert numbers(resumed) == numbers(stopped)


def test_a_rank_without_rows_has_a_batch_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_source, "shard", lambda rows: rows[1:2])
    batches = list(StepLoader(source(4), instructions, lambda batch: batch.mask.sum(), accumulate=1))
    assert [len(batch) for batch in batches] == [1, 1]
    assert [bool(batch.mask.any()) for batch in batches] == [True, False]
    assert float(batches[1].weight) == 1.0  # nothing is divided by 0


def test_held_out_batches_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_loader, "shard", lambda rows: rows[::2])
    loader = ValidationLoader([["a", "b", "c"], ["d"]])
    assert len(loader) == 2
    assert list(loader) == [[{"prompt": "a"}, {"prompt": "c"}], [{"prompt": "d"}]]

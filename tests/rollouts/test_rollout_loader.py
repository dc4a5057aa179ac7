"""The rollout loader resumes at any micro-batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlhf_lightning.rollouts import row_source
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.rollout_loader import RolloutLoader
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Batch
from tests.rollouts.loaders import buffer, full, source

NONE: Any = {"values": None, "advantages": None, "returns": None}


def loader(iterations: int = 3) -> RolloutLoader:
    def collect(rows: Any, count: bool, randomness: Randomness) -> RolloutBuffer:
        batch, rewards = full(), replace(randomness, rows=tuple(range(12))).uniforms(1)[0]
        return buffer(Batch(**{**batch.tensors(), "rewards": rewards, **NONE}), seed=randomness.iteration)

    return RolloutLoader(source(), collect, lambda: buffer(full(1)), 6, iterations, seed=3)


@pytest.mark.parametrize("stop", [1, 6, 8, 12])
def test_a_loader_resumes_at_any_micro_batch(stop: int) -> None:
    whole = [micro_batch.rewards.tolist() for micro_batch in loader()]
    assert len(whole) == len(loader()) == 18
    stopped = loader()
    served = iter(stopped)
    first = [next(served).rewards.tolist() for _ in range(stop)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert first + [micro_batch.rewards.tolist() for micro_batch in resumed] == whole


def test_a_second_epoch_continues_after_the_first() -> None:
    once, twice = loader(iterations=4), loader(iterations=2)
    whole = [micro_batch.rewards.tolist() for micro_batch in once]
    served = iter(twice)
    first = [next(served).rewards.tolist() for _ in range(12)]  # Lightning stops at the length of the loader
    assert first + [micro_batch.rewards.tolist() for micro_batch in twice] == whole


def test_every_rollout_has_random_numbers_of_its_own() -> None:
    numbers = {number for micro_batch in loader(iterations=3) for number in micro_batch.rewards.tolist()}
    assert len(numbers) == 3 * 12


def rewards(micro_batches: Any) -> list[list[float]]:
    return [micro_batch.rewards.tolist() for micro_batch in micro_batches]


class Recorded:
    """What a loader collects: the rows, whether they count, and their numbers."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], bool, tuple[int, ...]]] = []
        self.fails = False

    def __call__(self, rows: Any, count: bool, randomness: Randomness) -> RolloutBuffer:
        if self.fails:
            raise ValueError("no reward")
        self.seen.append(([row["prompt"] for row in rows], count, randomness.rows))
        return buffer(seed=randomness.iteration)

    def loader(self, **options: Any) -> RolloutLoader:
        return RolloutLoader(source(), self, lambda: buffer(full(1)), 6, 3, seed=3, **options)


def test_a_limited_epoch_stops_within_a_rollout_and_the_next_continues_there() -> None:
    whole, limited = Recorded(), Recorded()
    loader = limited.loader(limit=4)
    epochs = []
    for _ in range(3):  # Lightning takes `limit` micro-batches, and asks for no further one
        served = iter(loader)
        epochs += [next(served).tokens.tolist() for _ in range(4)]
    assert epochs == [each.tokens.tolist() for each in whole.loader()][:12]
    assert limited.seen == whole.seen[:2]


def test_an_epoch_ends_by_itself_at_the_first_rollout_beyond_its_limit() -> None:
    for limit, rollouts in ((6, 1), (7, 2), (12, 2)):
        collected = Recorded()
        assert len(list(collected.loader(limit=limit))) == 6 * rollouts
        assert len(collected.seen) == rollouts


def test_repeated_epochs_collect_the_rows_of_the_first() -> None:
    collected, other = Recorded(), Recorded()
    loader, plain = collected.loader(limit=6, repeat=True), other.loader(limit=6)
    for _ in range(3):
        list(loader)
        list(plain)
    assert collected.seen[0] == collected.seen[1] == collected.seen[2]
    assert other.seen[0] != other.seen[1]


def test_a_rank_without_rows_collects_a_row_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = Recorded()
    assert next(iter(collected.loader())) is not None
    assert collected.seen == [(collected.seen[0][0], True, (0, 1, 2))]
    monkeypatch.setattr(row_source, "shard", lambda rows: [])
    nothing = Recorded()
    next(iter(nothing.loader()))
    assert nothing.seen == [(collected.seen[0][0][:1], False, (0,))]


def test_a_collection_that_fails_loses_no_row() -> None:
    collected = Recorded()
    loader = collected.loader()
    served = iter(loader)
    assert not loader.collecting
    for _ in range(6):
        next(served)
    assert loader.at_last_micro_batch
    collected.fails = True
    with pytest.raises(ValueError, match="no reward"):
        next(served)
    assert loader.collecting
    assert not loader.at_last_micro_batch
    again = Recorded()
    resumed = again.loader()
    resumed.load_state_dict(loader.state_dict())
    assert not resumed.collecting
    list(resumed)
    whole = Recorded()
    list(whole.loader())
    assert [*collected.seen, *again.seen] == whole.seen


def test_a_step_that_was_not_taken_is_repeated() -> None:
    def accumulated() -> RolloutLoader:
        return RolloutLoader(
            source(), lambda *_: buffer(accumulate=2), lambda: buffer(full(1), accumulate=2), 12, 1, seed=3
        )

    whole = [each.tokens.tolist() for each in accumulated()]
    for stop, start in ((1, 0), (2, 0), (3, 2), (4, 2)):
        stopped, resumed = accumulated(), accumulated()
        served = iter(stopped)
        for _ in range(stop):
            next(served)
        resumed.load_state_dict({**stopped.state_dict(), "again": True})
        assert [each.tokens.tolist() for each in resumed] == whole[start:]

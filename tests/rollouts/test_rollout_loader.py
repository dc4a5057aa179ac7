"""The rollout loader resumes at any micro-batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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

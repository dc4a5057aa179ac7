"""`RandomReward`."""

from __future__ import annotations

from completions import completions

from rlhf_lightning.rewards import (
    RandomReward,
)


def test_random_scores_resume_from_their_state() -> None:
    reward, rows = RandomReward(seed=3), completions(["a"] * 400)
    state = reward.state_dict()
    first = reward(rows)
    assert reward(rows) != first
    reward.load_state_dict(state)
    assert reward(rows) == first
    assert abs(sum(first) / 400) < 0.2
    assert RandomReward(seed=4)(rows) != first

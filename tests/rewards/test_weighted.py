"""`WeightedSum` and its components."""

from __future__ import annotations

import math

import pytest
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import (
    LengthReward,
    NumberReward,
    PatternReward,
    ResponseText,
    Reward,
    RewardOutput,
    WeightedSum,
    reward_scores,
)
from rlhf_lightning.types import Completions


def test_a_weighted_sum_and_its_components() -> None:
    rewards = {"found": PatternReward("a"), "short": LengthReward(1, penalty=1.0)}
    reward = WeightedSum(rewards, {"short": 0.5})
    found = reward_scores(reward, completions(["a b", "c"]))
    assert found.rewards.tolist() == [0.5, 0.0]
    assert found.components == {"found": [1.0, 0.0], "short": [-1.0, 0.0]}
    assert found.step_rewards is None
    assert reward.component_weights == ResponseText(reward).component_weights == {"found": 1.0, "short": 0.5}
    unknown = WeightedSum({"number": NumberReward(), "found": PatternReward("a")})
    found = reward_scores(unknown, completions(["#### 1 a", "a"], answer=["1", "x"]))
    assert found.rewards[0] == 2.0
    assert math.isnan(found.rewards[1])
    assert found.components == {"number": [1.0, None], "found": [1.0, 1.0]}
    with pytest.raises(UserError, match=r"has a component 'mean', and reward/mean is another metric; rename it"):
        WeightedSum({"mean": PatternReward("a")})
    with pytest.raises(UserError, match="did you mean 'short'"):
        WeightedSum(rewards, {"shot": 1.0})
    with pytest.raises(UserError, match="empty"):
        WeightedSum({})


def test_a_weight_without_a_component_is_refused() -> None:
    class Forgetful(Reward):
        component_weights = {"format": 1.0, "answer": 2.0}  # noqa: RUF012

        def __call__(self, completions: Completions) -> RewardOutput:
            return RewardOutput([1.0], {"format": [1.0]})

    with pytest.raises(UserError, match="Forgetful has a weight for 'answer' and returned no such component"):
        reward_scores(Forgetful(), completions(["a"]))

"""`WeightedSum` and its components."""

from __future__ import annotations

import pytest
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import (
    LengthReward,
    NumberReward,
    PatternReward,
    WeightedSum,
)


def test_a_weighted_sum_and_its_components() -> None:
    rewards = {"found": PatternReward("a"), "short": LengthReward(1, penalty=1.0)}
    reward = WeightedSum(rewards, {"short": 0.5})
    assert reward(completions(["a b", "c"])) == [0.5, 0.0]
    assert reward.components() == {"found": [1.0, 0.0], "short": [-1.0, 0.0]}
    unknown = WeightedSum({"number": NumberReward(), "found": PatternReward("a")})
    assert unknown(completions(["#### 1 a", "a"], answer=["1", "x"])) == [2.0, None]
    with pytest.raises(UserError, match="did you mean 'short'"):
        WeightedSum(rewards, {"shot": 1.0})
    with pytest.raises(UserError, match="empty"):
        WeightedSum({})

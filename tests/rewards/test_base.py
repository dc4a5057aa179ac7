"""The check of scores, and short names of rewards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from completions import completions
from jsonargparse import ArgumentParser

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import (
    Reward,
    score,
)
from rlhf_lightning.types import Completions


class Fixed(Reward):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, completions: Completions) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_valid_scores() -> None:
    assert score(Fixed(torch.tensor([1.0, 2.0])), completions(["a", "b"])).tolist() == [1.0, 2.0]
    found = score(Fixed([None, 3]), completions(["a", "b"]))
    assert math.isnan(found[0])
    assert found[1] == 3.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (KeyError("oops"), "raised KeyError: 'oops'"),
        ([1.0], "returned 1 scores for 2"),
        (None, "returned None"),
        (0.5, "returned 0.5; it must return 2 scores"),
        (torch.tensor(0.5), "returned 0.5; it must return 2 scores"),
        ([1.0, float("nan")], "returned nan for completion 1"),
        ([float("inf"), 1.0], "returned inf for completion 0"),
        (["good", 1.0], "'good' for completion 0"),
        ([0.0, 1e39], "returned 1e+39 for completion 1"),  # infinite in float32
        ([10**400, 0.0], "for completion 0; it must return a number or None"),
        ({0: 0.5, 1: 0.7}, "returned {0: 0.5, 1: 0.7}; it must return 2 scores"),  # whose keys are numbers
        ("12", "returned '12'; it must return 2 scores"),
    ],
)
def test_invalid_scores(answer: Any, expected: str) -> None:
    with pytest.raises(UserError, match=r"^reward Fixed ") as caught:
        score(Fixed(answer), completions(["a", "b"]))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["PatternReward", "NumberReward", "RandomReward", "FunctionReward", "LengthReward", "ModelReward", "ServerReward"],
)
def test_rewards_have_short_names(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    required = {"PatternReward": ["--reward.pattern=a"], "FunctionReward": ["--reward.function=a.b"]}
    required["ServerReward"] = ["--reward.url=http://localhost:8000"]
    more = {"LengthReward": ["--reward.limit=3"], "ModelReward": ["--reward.name_or_path=playground/reward"]}
    parsed = parser.parse_args([f"--reward={name}", *required.get(name, []), *more.get(name, [])])
    assert type(parser.instantiate_classes(parsed).reward).__name__ == name

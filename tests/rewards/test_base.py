"""The check of scores, and short names of rewards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from completions import completions
from jsonargparse import ArgumentParser

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import (
    Reward,
    WeightedSum,
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


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_scores_may_be_tensors_and_arrays_of_any_type_of_numbers(dtype: torch.dtype) -> None:
    rows, tensor = completions(["a", "b"]), torch.tensor([1, 0]).to(dtype)
    answers: list[Any] = [tensor, list(tensor), tuple(tensor)]
    if dtype != torch.bfloat16:  # which NumPy does not have
        array = tensor.numpy()
        answers += [array, list(array), array.astype(object)]
    if dtype.is_floating_point:
        answers.append(tensor.clone().requires_grad_())
    for answer in answers:
        found = score(Fixed(answer), rows)
        assert found.tolist() == [1.0, 0.0]
        assert found.dtype == torch.float32
        assert not found.requires_grad


@pytest.mark.gpu
def test_scores_may_lie_on_a_gpu() -> None:
    tensor = torch.tensor([1.5, float("nan")], device="cuda", dtype=torch.bfloat16)
    for answer in (tensor, list(tensor)):
        found = score(Fixed(answer), completions(["a", "b"]))
        assert found.device.type == "cpu"
        assert found[0] == 1.5
        assert math.isnan(found[1])


@pytest.mark.parametrize("answer", [[None, 3], [float("nan"), 3], torch.tensor([torch.nan, 3]), np.array([np.nan, 3])])
def test_none_and_nan_are_no_score(answer: Any) -> None:
    found = score(Fixed(answer), completions(["a", "b"]))
    assert math.isnan(found[0])
    assert found[1] == 3.0
    both = WeightedSum({"a": Fixed(answer), "b": Fixed([1.0, 1.0])})
    assert both(completions(["a", "b"])).scores == [None, 4.0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            torch.ones(2, 1),
            "returned a Tensor of shape (2, 1); it must return 2 scores, one per completion: a shape of (2,)",
        ),
        (np.ones((2, 1)), "returned a ndarray of shape (2, 1); it must return 2 scores"),
        ([torch.ones(1), torch.ones(1)], "returned tensor([1.]) for completion 0"),
        ([[1.0], [1.0]], "returned [1.0] for completion 0; it must return a number or None"),
        (np.array(["1", "2"]), "returned '1' for completion 0; it must return a number or None"),
        (["1.0", "2.0"], "returned '1.0' for completion 0"),
        ([b"1", 2], "returned b'1' for completion 0"),
        ([1j, 2], "returned 1j for completion 0"),
        (np.array([1.0, np.inf]), "returned inf for completion 1; it must return a finite number"),
        (torch.tensor([-torch.inf, 1.0]), "returned -inf for completion 0"),
        (np.zeros(3), "returned 3 scores for 2 completions"),
        (np.float32(1), "returned 1.0; it must return 2 scores"),
        (KeyError("oops"), "raised KeyError: 'oops'"),
        ([1.0], "returned 1 scores for 2"),
        (None, "returned None"),
        (0.5, "returned 0.5; it must return 2 scores"),
        (torch.tensor(0.5), "returned 0.5; it must return 2 scores"),
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

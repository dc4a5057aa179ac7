"""The win rate against the first replies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.callbacks.win_rate import WinRate
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import ValidationResults

NO_REQUESTS: Any = None


def validated(callback: WinRate, step: int, scores: list[float], name: str = "reward") -> float:
    samples = [{name: score} for score in scores]
    results = ValidationResults(
        step, step == 0, "val", Path(), {}, samples, [{"prompt": str(i)} for i in range(len(samples))]
    )
    return callback.evaluate(results, NO_REQUESTS)["win_rate"]


def test_later_replies_are_held_against_the_first() -> None:
    callback = WinRate()
    assert validated(callback, 0, [0.0, 1.0, 2.0, 3.0]) == 0.5
    assert validated(callback, 4, [1.0, 1.0, 3.0, 4.0]) == 0.875
    resumed = WinRate()
    resumed.load_state_dict(callback.state_dict())
    assert validated(resumed, 8, [0.0, 0.0, 0.0, 0.0]) == 0.125


def test_a_first_validation_that_was_cut_short_is_held_against_the_same_prompts() -> None:
    callback = WinRate()
    assert [validated(callback, 0, [0.0, 1.0]), validated(callback, 4, [1.0, 0.0, 3.0, 4.0])] == [0.5, 0.5]


def test_another_score_can_decide() -> None:
    callback = WinRate(score="reward/true")
    validated(callback, 0, [0.0, 0.0], "reward/true")
    assert validated(callback, 2, [1.0, 1.0], "reward/true") == 1.0


def test_other_prompts_than_those_of_the_start_are_refused() -> None:
    callback = WinRate()
    validated(callback, 0, [0.0, 1.0])
    samples = [{"reward": 1.0}]
    results = ValidationResults(8, False, "test", Path(), {}, samples, [{"prompt": "another"}])
    with pytest.raises(UserError, match=r"set WinRate\.against to reference"):
        callback.evaluate(results, NO_REQUESTS)


def test_replies_without_a_score_are_no_loss() -> None:
    callback, unscored = WinRate(), float("nan")
    validated(callback, 0, [unscored, 0.0])
    assert validated(callback, 1, [1.0, 1.0]) == 1.0
    assert math.isnan(validated(callback, 2, [unscored, unscored]))

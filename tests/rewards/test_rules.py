"""Rule-based rewards."""

from __future__ import annotations

from typing import Any

import pytest
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import (
    LengthReward,
    NumberReward,
    PatternReward,
)


def test_a_pattern() -> None:
    assert PatternReward("ab+", matched=2.0, unmatched=-1.0)(completions(["xabbx", "ax"])) == [2.0, -1.0]
    with pytest.raises(UserError, match="no regular expression"):
        PatternReward("(").check()


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("so #### 1,234", "it is #### 1234", 1.0),
        ("so #### $-3.50", "#### -3.5", 1.0),
        ("#### 1 then #### 2", "#### 2", 1.0),
        ("#### 5", "#### 2", 0.25),
        ("the answer is 2", "#### 2", 0.0),
        ("#### 2", 2, 1.0),
        ("#### 0.00002", 2e-5, 1.0),
        ("#### 20", 1e20, 0.25),  # which Python writes as 1e+20
        ("#### 2.5e3", 2500, 1.0),
        ("#### .5", "#### 0.5", 1.0),
        ("#### 2", "unknown", None),
    ],
)
def test_the_number_after_a_marker(response: str, answer: Any, expected: float | None) -> None:
    assert NumberReward(marker_reward=0.25)(completions([response], answer=[answer])) == [expected]


def test_number_options() -> None:
    rows = completions(["the answer is 7."], answer=["7"], solution=["8"])
    assert NumberReward(fallback_last=True)(rows) == [1.0]
    assert NumberReward(fallback_last=True, column="solution")(rows) == [0.0]
    assert NumberReward(fallback_last=True, column="solution", tolerance=1.0)(rows) == [1.0]
    assert NumberReward(marker="is", column="answer")(rows) == [1.0]
    with pytest.raises(UserError, match=r"no column of the data; expected one of: answer, solution"):
        NumberReward(column="result")(rows)


def test_length_in_three_units() -> None:
    rows = completions(["one two three four", "one"])
    assert LengthReward(3, penalty=0.5)(rows) == [-0.5, 0.0]
    assert LengthReward(2, penalty=0.5, unit="words")(rows) == [-1.0, 0.0]
    assert LengthReward(3, penalty=1.0, unit="characters")(rows) == [-15.0, 0.0]

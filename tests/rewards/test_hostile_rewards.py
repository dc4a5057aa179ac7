"""Whatever the code of a reward does, the run ends in one line that names the reward."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from completions import completions

from rlhf_lightning import FunctionReward
from rlhf_lightning.errors import UserError, shown, text_of
from rlhf_lightning.rewards.base import score


class Odd(BaseException):
    """No Exception."""


class Unprintable(Exception):
    def __repr__(self) -> str:
        sys.exit(0)

    __str__ = __repr__

    def __float__(self) -> float:
        raise RuntimeError


def exits(responses: list[str]) -> list[float]:
    sys.exit(0)


def exits_with_text(responses: list[str]) -> list[float]:
    sys.exit("bye")


def raises_odd(responses: list[str]) -> list[float]:
    raise Odd("no")


def raises_unprintable(responses: list[str]) -> list[float]:
    raise Unprintable


def raises_escapes(responses: list[str]) -> list[float]:
    raise ValueError("\x1b[31m\x07red")


def returns_unprintable(responses: list[str]) -> Any:
    return Unprintable()


def returns_unprintable_scores(responses: list[str]) -> Any:
    return [Unprintable() for _ in responses]


def exits_as_generator(responses: list[str]) -> Iterator[float]:
    yield 1.0
    sys.exit(0)


def returns_a_huge_number(responses: list[str]) -> list[Any]:
    return [10**400 for _ in responses]


def returns_a_huge_text(responses: list[str]) -> Any:
    return "x" * 10**6


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (exits, "reward FunctionReward called sys.exit: 0; the call had 2 completions"),
        (exits_with_text, "reward FunctionReward called sys.exit: bye; the call"),
        (raises_odd, "reward FunctionReward raised Odd: no; the call"),
        (raises_unprintable, "raised Unprintable: a Unprintable whose text raises SystemExit; the call"),
        (raises_escapes, r"raised ValueError: \x1b[31m\x07red; the call"),
        (returns_unprintable, "returned a Unprintable whose repr raises SystemExit; it must return 2 scores"),
        (returns_unprintable_scores, "returned a Unprintable whose repr raises SystemExit for completion 0"),
        (exits_as_generator, "reward FunctionReward called sys.exit: 0; the call"),
        (returns_a_huge_number, "it must return a number or None"),
        (returns_a_huge_text, "it must return 2 scores, one per completion"),
    ],
)
def test_one_line(function: Callable[..., Any], timeout: float | None, expected: str) -> None:
    with pytest.raises(UserError) as raised:
        score(FunctionReward(function, timeout=timeout), completions(["a", "b"]))
    assert expected in str(raised.value)
    assert len(str(raised.value)) < 500


def test_an_interruption_stays_one() -> None:
    def interrupted(responses: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(FunctionReward(interrupted), completions(["a"]))


def test_values_and_errors_that_cannot_be_printed() -> None:
    assert shown(Unprintable()) == "a Unprintable whose repr raises SystemExit"
    assert text_of(Unprintable()) == "a Unprintable whose text raises SystemExit"

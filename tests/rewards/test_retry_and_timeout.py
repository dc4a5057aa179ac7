"""Retries and timeouts of a reward function that hangs or fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import FunctionReward, WeightedSum, score
from rlhf_lightning.rewards.retry_and_timeout import RetryPolicy, is_transient

ROWS = completions(["a", "b"])

FUNCTIONS = """
import asyncio, threading, time

calls, ended, release = [], [], threading.Event()

def sleeps(responses):
    calls.append(1)
    release.wait(20)
    ended.append(1)

async def sleeps_async(responses):
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        ended.append(1)
        raise

async def blocks_async(responses):
    release.wait(20)

def sleeps_between(responses):
    for _ in responses:
        release.wait(20)
        yield 0.0

def refuses(responses):
    calls.append(time.monotonic())
    if len(calls) < 3:
        raise ConnectionError("refused")
    return [1.0, 2.0]

def is_wrong(responses):
    calls.append(1)
    raise ValueError("no such rubric")

def interrupts(responses):
    calls.append(1)
    raise KeyboardInterrupt

def counts(responses):
    return [1.0] * (len(responses) + 1)

def answers(responses):
    return (float(ord(text[0])) for text in responses)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`functions("name", …)` is a FunctionReward; the functions record their calls in its module."""
    (tmp_path / "flaky_functions.py").write_text(FUNCTIONS)

    def make(name: str, **options: Any) -> FunctionReward:
        reward = FunctionReward(f"{tmp_path}/flaky_functions.py:{name}", **options)
        reward.check()
        made.append(reward.function.__globals__)  # type: ignore[union-attr]
        return reward

    made: list[dict[str, Any]] = []
    yield make
    for module in made:
        module["release"].set()


def recorded(reward: FunctionReward, name: str) -> list[float]:
    return reward.function.__globals__[name]  # type: ignore[union-attr]


Make = Callable[..., FunctionReward]


@pytest.mark.parametrize("name", ["sleeps", "sleeps_async", "blocks_async", "sleeps_between"])
def test_a_function_that_exceeds_its_timeout_fails(functions: Make, name: str) -> None:
    reward, started = functions(name, timeout=0.2), time.monotonic()
    with pytest.raises(
        UserError, match=rf"FunctionReward \S*:{name}: failed with TimeoutError: no answer within 0.2 s"
    ):
        score(reward, ROWS)
    assert 0.2 <= time.monotonic() - started < 5


def test_a_timeout_cancels_an_async_function_and_leaves_a_plain_one_to_a_daemon_thread(functions: Make) -> None:
    cancelled, abandoned = functions("sleeps_async", timeout=0.1), functions("sleeps", timeout=0.1)
    before = set(threading.enumerate())
    for reward in (cancelled, abandoned):
        with pytest.raises(UserError):
            score(reward, ROWS)
    left = set(threading.enumerate()) - before
    assert left
    assert all(thread.daemon for thread in left)
    limit = time.monotonic() + 5
    while not recorded(cancelled, "ended") and time.monotonic() < limit:
        time.sleep(0.01)
    assert recorded(cancelled, "ended") == [1]
    assert recorded(abandoned, "ended") == []


def test_a_timeout_is_retried(functions: Make) -> None:
    reward = functions("sleeps", timeout=0.05, retries=2, backoff=0)
    with pytest.raises(UserError, match="3 attempts in"):
        score(reward, ROWS)
    assert recorded(reward, "calls") == [1, 1, 1]


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_pauses_between_retries_double(
    functions: Make, timeout: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = functions("refuses", timeout=timeout, retries=3, backoff=0.02)
    assert score(reward, ROWS).tolist() == [1.0, 2.0]
    first, second, third = recorded(reward, "calls")
    assert second - first >= 0.02
    assert third - second >= 0.04
    printed = capsys.readouterr().out.splitlines()
    for line, attempt, wait in zip(printed, (1, 2), ("0.02", "0.04"), strict=True):
        assert line.startswith("reward FunctionReward ")
        assert line.endswith(f": attempt {attempt} of 4 failed (ConnectionError: refused); retrying in {wait} s")


def test_the_last_error_names_the_options_to_change(functions: Make) -> None:
    with pytest.raises(UserError) as caught:
        score(functions("refuses", timeout=3, retries=1, backoff=0.01), ROWS)
    line = str(caught.value)
    assert ": 2 attempts in " in line
    assert "the last with ConnectionError: refused" in line
    assert line.endswith("or increase timeout (now 3), retries (now 1) or backoff (now 0.01)")
    assert "\n" not in line


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_an_error_of_the_function_is_not_retried(functions: Make, timeout: float | None) -> None:
    reward = functions("is_wrong", timeout=timeout, retries=5, backoff=0.01)
    with pytest.raises(UserError, match="raised ValueError: no such rubric; the call had 2 completions"):
        score(reward, ROWS)
    assert recorded(reward, "calls") == [1]


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_keyboard_interrupt_is_not_retried(functions: Make, timeout: float | None) -> None:
    reward = functions("interrupts", timeout=timeout, retries=5, backoff=0.01)
    with pytest.raises(KeyboardInterrupt):
        score(reward, ROWS)
    assert recorded(reward, "calls") == [1]


def test_a_wrong_count_is_not_retried_and_a_generator_is_a_result(functions: Make) -> None:
    with pytest.raises(UserError, match="returned 3 scores for 2 completions"):
        score(functions("counts", retries=5, backoff=0.01), ROWS)
    assert score(functions("answers", timeout=5.0), ROWS).tolist() == [97.0, 98.0]


def test_each_reward_of_a_sum_has_its_own_retry_policy(functions: Make) -> None:
    reward = WeightedSum({"one": functions("refuses", retries=2, backoff=0), "two": functions("answers")}, {"two": 0.5})
    assert score(reward, ROWS).tolist() == [1.0 + 48.5, 2.0 + 49.0]


def test_the_thread_has_the_gradient_mode_of_its_caller() -> None:
    policy = RetryPolicy("a check", timeout=5.0)
    with torch.no_grad():
        assert policy.call(torch.is_grad_enabled) is False
    assert policy.call(torch.is_grad_enabled) is True
    assert policy.call(threading.current_thread) is not threading.current_thread()
    assert RetryPolicy("a check").call(threading.current_thread) is threading.current_thread()


def test_pauses_double_up_to_a_minute() -> None:
    pauses = [RetryPolicy("a check", retries=2000, backoff=16.0)._pause(attempt) for attempt in (1, 2, 3, 4, 2000)]
    assert pauses == [16.0, 32.0, 60.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError("no route to host"), True),
        *((HTTPError("u", status, "", None, None), True) for status in (408, 429, 500, 503)),  # type: ignore[arg-type]
        *((HTTPError("u", status, "", None, None), False) for status in (301, 400, 401, 404)),  # type: ignore[arg-type]
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (UserError("wrong"), False),
        (TypeError(), False),
    ],
)
def test_transient_errors(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"timeout": 0}, "timeout is 0; set it to seconds above 0, or to null"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1; set it to 0 or more"),
        ({"backoff": -0.5}, "backoff is -0.5; set it to seconds from 0 to 60"),
        ({"backoff": 61}, "backoff is 61"),
    ],
)
def test_numbers_out_of_range(options: dict[str, float], expected: str) -> None:
    with pytest.raises(UserError, match=f"reward FunctionReward a.b: {expected}"):
        FunctionReward("a.b", **options)  # type: ignore[arg-type]

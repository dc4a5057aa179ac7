"""The alarm for over-optimisation, its standard error, and the frontier."""

from __future__ import annotations

from random import Random

import pytest

from rlhf_lightning.evaluation.frontier import on_frontier
from rlhf_lightning.evaluation.over_optimization import Alarm, paired_drop


def test_the_standard_error_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = Random(0)
    best, now = ([random.gauss(mean, 1) for _ in range(50)] for mean in (1.0, 0.5))
    drop, error = paired_drop(best, now)
    result = stats.ttest_rel(best, now)
    assert drop / error == pytest.approx(result.statistic)
    assert paired_drop([*best, float("nan")], [*now, 1.0]) == (drop, error)


def _run(judge: list[float], reward: list[float]) -> list[bool]:
    """One alarm per validation, over ten prompts whose scores differ from prompt to prompt."""
    alarm, raised = Alarm(2.0, 2), []
    for step, (mean, value) in enumerate(zip(judge, reward, strict=True)):
        noise = [0.1 * ((place * 7 + step * 3) % 5 - 2) for place in range(10)]
        alarm.update(
            step, [place + mean + each for place, each in enumerate(noise)], [place + value for place in range(10)]
        )
        raised.append(alarm.raised)
    return raised


def test_two_validations_below_the_best_raise_it() -> None:
    assert _run([0, 1, 0, 0, 0], [0, 1, 2, 3, 4]) == [False, False, False, True, True]


def test_a_judge_that_recovers_clears_it() -> None:
    assert _run([0, 1, 0, 0, 1], [0, 1, 2, 3, 4]) == [False, False, False, True, False]
    assert _run([0, 1, 0, 1, 0], [0, 1, 2, 3, 4]) == [False] * 5


def test_no_fall_beyond_the_noise_and_no_fall_with_the_reward_raises_it() -> None:
    assert not any(_run([0, 1, 0.95, 0.95, 0.95], [0, 1, 2, 3, 4]))
    assert not any(_run([0, 1, 0, 0, 0], [0, 1, -0.5, -0.5, -0.5]))


def test_a_reward_that_is_up_since_the_start_need_not_be_up_since_the_best() -> None:
    assert _run([0, 1, 0, 0, 0], [0, 1, 0.5, 0.5, 0.5]) == [False, False, False, True, True]


def test_its_state_is_resumed() -> None:
    alarm = Alarm(2.0, 2)
    for step, mean in enumerate((1.0, 0.0)):
        alarm.update(step, [mean + 0.01 * i for i in range(5)], [step] * 5)
    other = Alarm(2.0, 2)
    other.load_state_dict(alarm.state_dict())
    other.update(2, [0.01 * i for i in range(5)], [2] * 5)
    assert other.raised
    assert other.best_step == 0


def test_the_frontier_has_the_points_that_no_other_beats() -> None:
    random = Random(1)
    points = [(random.random(), random.random()) for _ in range(40)]
    expected = []
    for kl, reward in points:
        expected.append(reward == max(r for k, r in points if k <= kl))
    assert on_frontier(points) == expected

"""Intervals and length-controlled win rates against scipy."""

from __future__ import annotations

import math
from random import Random

import numpy
import pytest

from rlhf_lightning.evaluation.comparison import (
    bootstrap_interval,
    length_controlled_win_rate,
    outcomes_of_judge,
)

optimize = pytest.importorskip("scipy.optimize")
stats = pytest.importorskip("scipy.stats")


def _pairs(longer: float, seed: int = 0, count: int = 400) -> tuple[list[float], list[float], list[float]]:
    """Outcomes that prefer the longer response with a strength, and a constant advantage of 0.4 logits."""
    random = Random(seed)
    own, other = ([random.uniform(5, 50) for _ in range(count)] for _ in range(2))
    logits = [0.4 + longer * math.tanh((a - b) / 18) for a, b in zip(own, other, strict=True)]
    return [float(random.random() < 1 / (1 + math.exp(-x))) for x in logits], own, other


def test_the_interval_is_that_of_scipy() -> None:
    values = _pairs(0.0)[0]
    expected = stats.bootstrap((values,), numpy.mean, n_resamples=2000, method="percentile", rng=1).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert bootstrap_interval([*values, math.nan]) == bootstrap_interval(values)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = Random(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval([float(random.random() < 0.6) for _ in range(60)], resamples=400, seed=seed)
        covered += low <= 0.6 <= high
    assert 0.9 <= covered / 200 <= 0.99


def test_length_control_is_the_regression_that_scipy_finds() -> None:
    outcomes, own, other = _pairs(2.0)
    outcomes[:20] = [0.5] * 20
    difference = numpy.array(own) - numpy.array(other)
    feature = numpy.tanh(difference / difference.std())

    def loss(w: numpy.ndarray) -> float:
        logits = w[0] + w[1] * feature
        return float(numpy.logaddexp(0, logits).sum() - (numpy.array(outcomes) * logits).sum() + 0.005 * (w @ w))

    best = optimize.minimize(loss, numpy.zeros(2), tol=1e-10).x
    assert length_controlled_win_rate(outcomes, own, other) == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-5)


def test_length_control_takes_away_what_length_explains() -> None:
    random = Random(3)
    other = [random.uniform(10, 40) for _ in range(500)]
    own = [length + random.uniform(-5, 15) for length in other]  # longer on average
    outcomes = [float(a > b) for a, b in zip(own, other, strict=True)]
    assert sum(outcomes) / 500 > 0.7
    assert length_controlled_win_rate(outcomes, own, other) < 0.55


@pytest.mark.parametrize(
    ("outcomes", "low", "high"), [([1.0] * 9, 0.9, 1.0), ([0.5] * 9, 0.5, 0.5), ([0.0] * 9, 0, 0.1)]
)
def test_one_sided_outcomes_have_a_finite_answer(outcomes: list[float], low: float, high: float) -> None:
    assert low <= length_controlled_win_rate(outcomes, [3.0] * 9, [3.0] * 9) <= high


class FirstIsBetter:
    def prefer(self, rows: list[dict[str, str]], first: list[str], second: list[str]) -> list[float | None]:
        return [
            None if "?" in a + b else 1.0 if "good" in a or "good" not in b else 0.0
            for a, b in zip(first, second, strict=True)
        ]


def test_a_preference_for_the_place_is_a_tie() -> None:
    own, other = ["good", "bad", "bad", "?"], ["bad", "good", "bad", "bad"]
    outcomes, consistency = outcomes_of_judge(FirstIsBetter(), [{}] * 4, own, other)
    assert outcomes[:3] == [1.0, 0.0, 0.5]
    assert math.isnan(outcomes[3])
    assert consistency == pytest.approx(2 / 3)

"""Models on the same prompts, and reward models on the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rlhf_lightning.evaluation.model_comparison import compare_responses, reward_model_metrics
from rlhf_lightning.types import RawRows

ROWS = [{"prompt": str(number)} for number in range(12)]
TEXTS = [["x" * (3 + place)] * 12 for place in range(3)]


def test_win_rates_and_strengths_follow_the_scores() -> None:
    scores = [[1.0] * 12, [0.0] * 8 + [1.0] * 2 + [2.0] * 2, [0.5] * 12]
    found = compare_responses(["a", "b", "c"], ROWS, TEXTS, scores)
    assert found.rate(0, 1) == pytest.approx((8 + 1) / 12)
    assert found.rate(1, 0) == pytest.approx(3 / 12)
    assert found.rate(2, 1) == pytest.approx(8 / 12)
    assert found.order == [0, 2, 1]
    duel = found.duels[0]
    assert duel.low < duel.rate < duel.high
    score, low, high = found.strengths[0]
    assert low < score < high
    assert math.isnan(found.rate(0, 0))


def test_a_model_against_itself_is_a_tie() -> None:
    found = compare_responses(["a", "b"], ROWS, [TEXTS[0]] * 2, [[1.0] * 12] * 2)
    assert found.rate(0, 1) == 0.5
    assert [score for score, *_ in found.strengths] == pytest.approx([0, 0], abs=1e-6)


def test_a_pairwise_judge_is_asked_in_both_orders_and_what_it_cannot_say_is_unknown() -> None:
    class Judge:
        def prefer(self, rows: RawRows, first: Sequence[str], second: Sequence[str]) -> list[float | None]:
            return [
                None if row["prompt"] == "0" else 1.0 if row["prompt"] == "1" else float(len(a) > len(b))
                for row, a, b in zip(rows, first, second, strict=True)
            ]

    found = compare_responses(["a", "b"], ROWS, TEXTS[:2], None, Judge())
    (duel,) = found.duels
    assert math.isnan(duel.outcomes[0])
    assert duel.outcomes[1] == 0.5  # a preference for the first place
    assert duel.rate == pytest.approx(0.5 / 11)
    assert duel.consistency == pytest.approx(10 / 11)


def test_nothing_known_is_nan() -> None:
    found = compare_responses(["a", "b"], ROWS, TEXTS[:2], [[math.nan] * 12] * 2)
    assert math.isnan(found.rate(0, 1))
    assert all(math.isnan(value) for value in found.strengths[0])


def test_a_reward_model_that_prefers_length_is_right_on_longer_responses_alone() -> None:
    rows = [{"chosen": "x" * (9 if k % 2 else 1), "rejected": "x" * 5} for k in range(20)]
    scores = [[float(len(row[side])) for row in rows] for side in ("chosen", "rejected")]
    found = reward_model_metrics(rows, *scores)
    assert found["accuracy"] == 0.5
    assert found["accuracy/low"] < 0.5 < found["accuracy/high"]
    assert found["length_correlation"] == pytest.approx(1)
    assert (found["accuracy/better_is_longer"], found["accuracy/better_is_shorter"]) == (1, 0)


def test_a_reward_model_that_ignores_length_has_no_bias() -> None:
    rows = [{"chosen": "x" * (9 if k % 2 else 1), "rejected": "x" * 5} for k in range(20)]
    found = reward_model_metrics(rows, [1.0] * 20, [0.0] * 20)
    assert found["accuracy"] == 1
    assert abs(found["length_correlation"]) < 1e-6

"""Measures of a reward, against scipy and by hand; changes of prompts."""

from __future__ import annotations

import math
from random import Random

import pytest

from rlhf_lightning.evaluation.perturbations import PERTURBATIONS, perturbed
from rlhf_lightning.evaluation.reward_health import agreement, pair_metrics, rank_correlation
from rlhf_lightning.functional.ensembles import disagreement


def test_pairs_by_hand() -> None:
    metrics = pair_metrics([1.0, 0.0, 2.0, 3.0, math.nan], [0.0, 1.0, 2.0, 1.0, 0.0])
    assert metrics["accuracy"] == pytest.approx(2.5 / 4)
    assert metrics["margin"] == pytest.approx((1 - 1 + 0 + 2) / 4)
    assert pair_metrics([], []) == {}


def test_a_reward_that_says_how_sure_it_is_is_calibrated() -> None:
    random = Random(0)
    differences = [random.gauss(0, 1.5) for _ in range(5000)]
    signs = [1 if random.random() < 1 / (1 + math.exp(-abs(x))) else -1 for x in differences]
    margins = [sign * abs(x) for sign, x in zip(signs, differences, strict=True)]
    sure = pair_metrics(margins, [0.0] * 5000)["calibration_error"]
    too_sure = pair_metrics([4 * x for x in margins], [0.0] * 5000)["calibration_error"]
    assert sure < 0.02 < 0.1 < too_sure


def test_the_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = Random(1)
    a = [float(random.randint(0, 9)) for _ in range(60)]  # with ties
    b = [x + random.gauss(0, 3) for x in a]
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-6)
    assert rank_correlation([*a, math.nan], [*b, 0.0]) == pytest.approx(rank_correlation(a, b))
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


def test_agreement_compares_within_groups_alone() -> None:
    assert agreement([1, 2, 9, 8], [1, 2, 5, 6], [0, 0, 1, 1]) == 0.5
    assert agreement([1, 1], [0, 1], [0, 0]) == 0.5
    assert math.isnan(agreement([1, 2], [0, 0], [0, 0]))


def test_rewards_that_differ_by_scale_and_place_agree() -> None:
    scores = [0.0, 1.0, 4.0]
    assert disagreement([scores, [10 + 3 * x for x in scores]]) == pytest.approx(0, abs=1e-9)
    assert disagreement([[0.0, 1.0], [1.0, 0.0]]) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_a_change_is_the_same_every_time_and_keeps_the_row(kind: str) -> None:
    row = {"prompt": "Please name two cats. Which one is bigger?", "answer": 1}
    changed = perturbed(row, kind, Random(3))
    assert changed == perturbed(row, kind, Random(3))
    assert changed is not None
    assert changed["answer"] == 1
    assert changed["prompt"] != row["prompt"]
    talk = [{"role": "user", "content": "hi there"}, {"role": "user", "content": row["prompt"]}]
    last = perturbed({"prompt": talk}, kind, Random(3))
    assert last is not None
    assert last["prompt"] == [talk[0], {"role": "user", "content": changed["prompt"]}]


def test_one_sentence_has_no_other_order() -> None:
    assert perturbed({"prompt": "one sentence"}, "order", Random(0)) is None

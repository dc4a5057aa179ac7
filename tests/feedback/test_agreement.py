"""Agreement against values worked out elsewhere, and each annotator's accuracy, pace and leanings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from feedback_items import pair

from rlhf_lightning.feedback.agreement import cohen_kappa, krippendorff_alpha, mean_kappa, overview
from rlhf_lightning.feedback.items import NewItem, NewResponse
from rlhf_lightning.feedback.status import status_lines
from rlhf_lightning.feedback.store import Store

pytest.importorskip("krippendorff")
Person = Callable[..., int]
Judge = Callable[..., int]

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: four observers, twelve units
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
UNITS = [{row: float(v) for row, v in enumerate(column) if v is not None} for column in zip(*OBSERVERS, strict=True)]


@pytest.mark.parametrize(("ordinal", "alpha"), [(False, 0.743), (True, 0.815)])
def test_alpha_is_that_of_krippendorffs_example(ordinal: bool, alpha: float) -> None:
    found = krippendorff_alpha(UNITS, ordinal)
    assert found == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_a_single_value_is_undefined() -> None:
    assert krippendorff_alpha([{0: 1.0, 1: 1.0}], ordinal=False) is None
    assert krippendorff_alpha([], ordinal=True) is None


def test_kappa_with_squared_weights() -> None:
    pairs = [(1, 1), (2, 2), (3, 3), (1, 2), (2, 3), (1, 3)]
    # observed (0 + 0 + 0 + 1 + 1 + 4) / 6; expected over 3, 2, 1 by 1, 2, 3: (3·2 + 3·3·4 + 2·1 + 2·3 + 1·1·4 + 1·2) / 36
    assert cohen_kappa(pairs, lambda a, b: (a - b) ** 2) == pytest.approx(1 - (6 / 6) / (56 / 36))


def test_kappa_of_several_annotators_is_weighted_by_what_two_share() -> None:
    def different(a: float, b: float) -> float:
        return float(a != b)

    same = [{0: float(i % 2), 1: float(i % 2)} for i in range(6)]
    opposite = [{0: float(i % 2), 2: float(1 - i % 2)} for i in range(2)]
    assert mean_kappa(same, different) == pytest.approx(1.0)
    assert mean_kappa(opposite, different) == pytest.approx(-1.0)
    assert mean_kappa(same + opposite, different) == pytest.approx((6 * 1 - 2 * 1) / 8)


@pytest.mark.parametrize("better", [lambda i: 0, lambda i: i % 2, lambda i: 1 - i % 2], ids=["first", "odd", "even"])
def test_agreement_on_pairs_does_not_depend_on_which_response_is_first(
    store: Store, person: Person, judge: Judge, better: Callable[[int], int]
) -> None:
    """Both agree on 90 of 100 pairs, whatever the order of the file: chance gives a half, so α is about 0.8."""
    store.add(pair(i, wanted=2) for i in range(100))
    for name in ("Ada", "Bob"):
        somebody = person(name)
        for i in range(100):
            judge(somebody, choice=(better(i) + (name == "Bob" and i % 10 == 0)) % 2)
    (found,) = overview(store).agreement
    assert (found.what, found.percent, found.units) == ("pair", 90.0, 100)
    assert found.alpha == pytest.approx(0.8, abs=0.03)
    assert found.kappa == pytest.approx(0.8, abs=0.03)


def test_progress_and_annotators(store: Store, person: Person) -> None:
    store.add([pair(i, wanted=2, answer={"choice": 0}) for i in range(8)])
    store.add([pair(100, purpose="gold", answer={"choice": 0}), pair(101, purpose="training", answer={"choice": 0})])
    store.update_settings(gold_share=0.99)
    ada, bob = person("Ada"), person("Bob")
    left, seconds = 0, 0.0
    while (lease := store.next(ada)) is not None:
        seconds += 1
        left += lease.purpose != "training" and lease.order[0] == 0
        store.save(ada, lease.id, {"choice": 0}, seconds=seconds)
    lease = store.next(bob)
    assert lease is not None
    store.save(bob, lease.id, {"choice": 1})
    found = overview(store)
    assert (found.items, found.open, found.judgements, found.first_model) == (8, 8, 8, "model a")
    assert found.recorded is not None
    assert (found.recorded.share, found.recorded.cases) == (1.0, 8)
    first, second = found.annotators
    assert (first.name, first.judgements, first.skips) == ("Ada", 8, 0)
    assert (first.gold_right, first.gold_total, first.training_right, first.training_total) == (1, 1, 1, 1)
    assert first.seconds_median == 6.0  # of 2 to 10 seconds: training does not count
    assert first.left_share == pytest.approx(left / 9)
    assert (first.longer_share, first.first_model_share) == (0.0, 1.0)
    assert (second.training_right, second.training_total, second.judgements) == (0, 1, 0)


def test_ratings_and_rankings_agree_by_criterion(store: Store, person: Person, judge: Judge) -> None:
    responses = tuple(NewResponse(text) for text in "abc")
    store.add([NewItem("rating", f"r{i}", responses[:1], criteria=("kind", "true"), wanted=2) for i in range(3)])
    store.add([NewItem("ranking", f"o{i}", responses, wanted=2) for i in range(2)])
    for shift, name in enumerate(("Ada", "Bob")):
        somebody = person(name)
        for i in range(3):
            judge(somebody, scores=[{"kind": 2 * i + 1, "true": 2 * i + 1 + shift * 2}])
        judge(somebody, ranks=[1, 2, 3])
        judge(somebody, ranks=[3, 2, 1] if shift else [3, 1, 2])
    found = {agreement.what: agreement for agreement in overview(store).agreement}
    assert list(found) == ["ranking", "kind", "true"]
    assert (found["kind"].alpha, found["kind"].percent) == (pytest.approx(1.0), 100.0)
    assert found["true"].percent == 0.0  # two points apart
    assert found["true"].kappa == pytest.approx(1 - 4 / (84 / 9))  # 1, 3, 5 against 3, 5, 7, squared
    assert found["true"].alpha is not None
    assert found["true"].alpha < 0.8
    assert (found["ranking"].units, found["ranking"].percent) == (6, pytest.approx(100 * 5 / 6))


def test_status_names_what_there_is(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1, wanted=2), pair(2, wanted=2)])
    ada, bob = person("Ada"), person("Bob")
    judge(ada, choice=0), judge(bob, choice=0), judge(ada, choice=0)
    text = "\n".join(status_lines(overview(store)))
    assert "items       2: 1 open, 1 settled, 0 disputed, 0 adjudicated" in text
    assert "pair: Krippendorff's α undefined, Cohen's κ undefined, 100 % (1 judged twice)" in text
    assert "Ada" in text
    assert "first model: model a" in text


def test_an_empty_store_has_an_overview(store: Store) -> None:
    found = overview(store)
    assert (found.items, found.alpha, found.kappa, found.percent, found.recorded) == (0, None, None, None, None)

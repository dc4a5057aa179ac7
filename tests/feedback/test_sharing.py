"""Several annotators of one store: leases, k judgements for an item, disputes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from feedback_items import Clock, pair

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.items import NewItem, NewResponse
from rlhf_lightning.feedback.store import Store

Person = Callable[..., int]
Judge = Callable[..., int]


def states(store: Store) -> list[str]:
    with store.database.read() as connection:
        return [row["state"] for row in connection.execute("SELECT state FROM items ORDER BY id")]


def test_a_lease_keeps_the_place_until_it_expires(store: Store, person: Person, clock: Clock) -> None:
    store.add([pair(1)])
    ada, bob = person("Ada"), person("Bob")
    first = store.next(ada)
    assert first is not None
    assert store.next(bob) is None
    clock.now += store.settings.lease_seconds + 1
    second = store.next(bob)
    assert second is not None
    assert store.save(ada, first.id, {"choice": 0}).status == "expired"  # Bob has the place
    assert store.save(bob, second.id, {"choice": 0}).status == "saved"
    assert store.history(ada) == []


def test_an_expired_lease_counts_where_the_place_is_free(store: Store, person: Person, clock: Clock) -> None:
    store.add([pair(1)])
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    clock.now += store.settings.lease_seconds + 1
    assert store.save(ada, lease.id, {"choice": 0}).status == "saved"


def test_a_lease_is_renewed_while_its_annotator_comes_back(store: Store, person: Person, clock: Clock) -> None:
    store.add([pair(1)])
    ada, bob = person("Ada"), person("Bob")
    lease = store.next(ada)
    for _ in range(4):
        clock.now += 0.6 * store.settings.lease_seconds
        again = store.next(ada)
        assert again is not None
        assert lease is not None
        assert again.id == lease.id
    assert store.next(bob) is None


def test_nobody_judges_an_item_twice(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1, wanted=3)])
    ada = person("Ada")
    judge(ada, choice=0)
    assert store.next(ada) is None
    assert states(store) == ["open"]


def test_unanimous_items_are_settled_and_others_disputed(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1, wanted=2), pair(2, wanted=2)])
    for name, second in (("Ada", 0), ("Bob", "tie")):
        somebody = person(name)
        judge(somebody, choice=1)
        judge(somebody, choice=second)
    assert states(store) == ["settled", "disputed"]
    assert store.disputed() == [(2, 2)]


def test_a_skip_leaves_the_place_to_others(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1)])
    ada, bob = person("Ada"), person("Bob")
    judge(ada, skip=True)
    assert store.next(ada) is None
    judgement = judge(bob, choice=0)
    assert states(store) == ["settled"]
    skipped = store.history(ada)[0].judgement_id
    assert store.correct(ada, skipped, {"choice": 1}).status == "expired"  # the item has what it wants
    assert store.undo(ada) is None
    store.correct(bob, judgement, {"skip": True})
    assert states(store) == ["open"]
    assert store.correct(ada, skipped, {"choice": 1}).status == "saved"


def test_an_adjudicator_decides(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1, wanted=2)])
    ada, bob, eve = person("Ada"), person("Bob"), person("Eve", "adjudicator")
    judge(ada, choice=0)
    judge(bob, choice=1)
    with pytest.raises(UserError, match="only an adjudicator"):
        store.adjudicate(ada, 1)
    lease = store.adjudicate(eve, 1)
    assert lease.purpose == "adjudication"
    assert store.adjudicate(eve, 1) == lease
    with pytest.raises(UserError, match="another adjudicator"):
        store.adjudicate(person("Joe", "owner"), 1)
    assert store.save(eve, lease.id, {"choice": 1}).status == "saved"
    assert states(store) == ["adjudicated"]
    assert [entry.answer["choice"] for entry in store.judgements_of(1)] == [0, 1, 1]
    with pytest.raises(UserError, match="not disputed"):
        store.adjudicate(eve, 1)
    assert store.undo(eve) is not None
    assert states(store) == ["disputed"]


def test_an_adjudicator_may_skip_and_come_back(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1, wanted=2)])
    judge(person("Ada"), choice=0)
    judge(person("Bob"), choice=1)
    eve = person("Eve", "adjudicator")
    assert store.save(eve, store.adjudicate(eve, 1).id, {"skip": True}).status == "saved"
    assert states(store) == ["disputed"]
    assert store.save(eve, store.adjudicate(eve, 1).id, {"choice": 0}).status == "saved"
    assert states(store) == ["adjudicated"]


def test_an_undone_judgement_of_an_adjudicated_item_can_be_given_again(
    store: Store, person: Person, judge: Judge
) -> None:
    store.add([pair(1, wanted=2)])
    ada, bob, eve = person("Ada"), person("Bob"), person("Eve", "adjudicator")
    judge(ada, choice=0)
    judge(bob, choice=1)
    store.save(eve, store.adjudicate(eve, 1).id, {"choice": 1})
    lease = store.undo(ada)
    assert lease is not None
    assert store.save(ada, lease.id, {"choice": 1}).status == "saved"
    assert states(store) == ["adjudicated"]


def scores(score: int) -> dict[str, object]:
    return {"scores": [{"kind": score}] * 3}


def edit(text: str) -> dict[str, object]:
    return {"edits": [{"response": 0, "text": text}]}


@pytest.mark.parametrize(
    ("kind", "first", "second", "state"),
    [
        ("ranking", {"ranks": [2, 1, 3]}, {"ranks": [2, 1, 3]}, "settled"),
        ("ranking", {"ranks": [2, 1, 3]}, {"ranks": [1, 2, 3]}, "disputed"),
        ("rating", scores(4), scores(5), "settled"),
        ("rating", scores(4), scores(6), "disputed"),
        ("edit", edit("x"), edit("y"), "settled"),
    ],
)
def test_what_agrees(
    store: Store,
    person: Person,
    judge: Judge,
    kind: str,
    first: dict[str, object],
    second: dict[str, object],
    state: str,
) -> None:
    responses = tuple(NewResponse(text) for text in ("a", "b", "c"))
    store.add([NewItem(kind, "prompt", responses, criteria=("kind",), wanted=2)])
    judge(person("Ada"), **first)
    judge(person("Bob"), **second)
    assert states(store) == [state]


def test_progress_counts_what_is_done_and_what_can_be_asked(store: Store, person: Person, judge: Judge) -> None:
    store.add(pair(i, wanted=2) for i in range(5))
    ada, bob = person("Ada"), person("Bob")
    assert store.progress_of(ada) == (0, 5)
    judge(ada, choice=0)
    judge(ada, choice=0)
    assert store.progress_of(ada) == (2, 5)
    for _ in range(5):
        judge(bob, choice=0)
    judge(person("Eve"), choice=0)  # fills the third item
    assert store.progress_of(ada) == (2, 4)


def test_threads_never_over_assign_and_lose_nothing(tmp_path: Path) -> None:
    wanted, items, people = 3, 40, 12
    with Store(tmp_path / "feedback.db", create=True) as store:
        store.add(pair(i, wanted=wanted) for i in range(items))
        ids = [found.id for name in range(people) if (found := store.invited(store.invite(f"p{name}")))]
        saved: list[int] = []
        errors: list[BaseException] = []

        def label(annotator: int) -> None:
            try:
                while (lease := store.next(annotator)) is not None:
                    found = store.save(annotator, lease.id, {"choice": annotator % 2})
                    assert found.status == "saved"
                    assert store.save(annotator, lease.id, {"choice": 0}).status == "repeated"
                    saved.append(found.judgement_id or 0)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=label, args=(identity,)) for identity in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        latest = store.latest()
        assert sorted(latest.values()) == sorted(saved)
        assert set(Counter(place.item for place in latest).values()) == {wanted}
        assert len(saved) == wanted * items


def test_two_processes_worth_of_stores_never_over_assign(tmp_path: Path) -> None:
    """A second connection, as that of another process, takes part in the same counting."""
    with Store(tmp_path / "f.db", create=True) as one, Store(tmp_path / "f.db") as other:
        one.add([pair(1)])
        ada, bob = (one.invited(one.invite(name)) for name in ("Ada", "Bob"))
        assert ada is not None
        assert bob is not None
        assert one.next(ada.id) is not None
        assert other.next(bob.id) is None

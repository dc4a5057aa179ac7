"""Judgements: only appended, corrected and withdrawn by rows, each form counted once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from feedback_items import Clock, pair

from rlhf_lightning.feedback.answers import InvalidAnswerError
from rlhf_lightning.feedback.items import NewItem, NewResponse
from rlhf_lightning.feedback.judgements import Place, TooFastError
from rlhf_lightning.feedback.store import Store

Person = Callable[..., int]
Judge = Callable[..., int]


def stored(store: Store) -> dict[Place, int]:
    """What the table says that counts."""
    with store.database.read() as connection:
        rows = connection.execute("SELECT item, annotator, adjudication, judgement FROM latest").fetchall()
    return {Place(*row[:3]): row[3] for row in rows}


def actions(store: Store) -> list[str]:
    with store.database.read() as connection:
        return [row["action"] for row in connection.execute("SELECT action FROM judgements ORDER BY id")]


@pytest.mark.parametrize("statement", ["UPDATE judgements SET answer = '{}'", "DELETE FROM judgements"])
def test_a_judgement_can_be_neither_changed_nor_deleted(
    store: Store, person: Person, judge: Judge, statement: str
) -> None:
    store.add([pair(1)])
    judge(person("Ada"), choice=0)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"), store.database.write() as connection:
        connection.execute(statement)


def test_a_judgement_records_order_seconds_guidelines_reasons_and_comment(store: Store, person: Person) -> None:
    store.add([pair(1)])
    assert [store.set_guidelines(text) for text in ("first", "second", "second")] == [1, 2, 2]
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    store.save(ada, lease.id, {"choice": 1, "reasons": ["safer"], "comment": "hm"}, seconds=3.5)
    (entry,) = store.history(ada)
    assert entry.answer == {"choice": 1, "reasons": ["safer"], "comment": "hm"}
    assert (entry.order, entry.seconds) == (lease.order, 3.5)
    with store.database.read() as connection:
        assert connection.execute("SELECT guidelines FROM judgements").fetchone()[0] == 2


def test_the_order_of_responses_is_shuffled(store: Store, person: Person, judge: Judge) -> None:
    store.add(pair(i) for i in range(40))
    ada = person("Ada")
    for _ in range(40):
        judge(ada, choice=0)
    left_first = sum(entry.order == (0, 1) for entry in store.history(ada))
    assert 10 <= left_first <= 30


def test_every_earlier_state_is_rebuilt_from_the_rows(store: Store, person: Person, judge: Judge) -> None:
    store.add(pair(i, wanted=2) for i in range(4))
    ada, bob = person("Ada"), person("Bob")
    states: dict[int, dict[Place, int]] = {}

    def keep() -> None:
        with store.database.read() as connection:
            newest = connection.execute("SELECT max(id) FROM judgements").fetchone()[0]
        states[newest] = stored(store)

    for step in range(3):
        first = judge(ada, choice=step % 2), keep()
        judge(bob, skip=True), keep()
        store.correct(ada, first[0], {"choice": "tie"}), keep()
    store.undo(ada), keep()
    store.undo(bob), keep()
    judge(bob, choice=1), keep()
    assert actions(store).count("undo") == 2
    assert actions(store).count("correct") == 3
    assert len(states) == 12
    for judgement, state in states.items():
        assert store.latest(judgement) == state
    assert store.latest() == stored(store)


def test_a_form_sent_twice_counts_once(store: Store, person: Person) -> None:
    store.add([pair(1), pair(2)])
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    first = store.save(ada, lease.id, {"choice": 0})
    again = store.save(ada, lease.id, {"choice": 1})
    assert (first.status, again.status) == ("saved", "repeated")
    assert first.judgement_id == again.judgement_id
    assert [entry.answer for entry in store.history(ada)] == [{"choice": 0}]


def test_a_form_of_an_undone_judgement_counts_no_more(store: Store, person: Person) -> None:
    store.add([pair(1)])
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    store.save(ada, lease.id, {"choice": 0})
    fresh = store.undo(ada)
    assert fresh is not None
    assert store.save(ada, lease.id, {"choice": 0}).status == "repeated"
    assert store.history(ada) == []
    assert store.save(ada, fresh.id, {"choice": 1}).status == "saved"


def test_undo_asks_the_same_item_in_the_same_order(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(i) for i in range(3)])
    ada = person("Ada")
    judge(ada, choice=0)
    shown = store.next(ada)
    assert shown is not None
    judge(ada, choice=0)
    again = store.undo(ada)
    assert again is not None
    assert (again.item.id, again.order) == (shown.item.id, shown.order)
    current = store.next(ada)
    assert current is not None
    assert current.id == again.id


def test_undo_with_nothing_to_undo(store: Store, person: Person) -> None:
    store.add([pair(1)])
    assert store.undo(person("Ada")) is None


def test_two_tabs_show_one_item_and_count_it_once(store: Store, person: Person) -> None:
    store.add([pair(1), pair(2)])
    ada = person("Ada")
    first, second = store.next(ada), store.next(ada)
    assert first is not None
    assert first == second
    store.save(ada, first.id, {"choice": 0})
    with store.database.read() as connection:
        assert connection.execute("SELECT count(*) FROM latest").fetchone()[0] == 1


def test_another_annotators_form_and_judgement_are_unknown(store: Store, person: Person) -> None:
    store.add([pair(1, wanted=2)])
    ada, bob = person("Ada"), person("Bob")
    lease = store.next(ada)
    assert lease is not None
    assert store.save(bob, lease.id, {"choice": 0}).status == "unknown"
    assert store.lease(bob, lease.id) is None
    saved = store.save(ada, lease.id, {"choice": 0})
    assert saved.judgement_id is not None
    assert store.correct(bob, saved.judgement_id, {"choice": 1}).status == "unknown"
    assert store.entry(bob, saved.judgement_id) is None


def test_a_correction_replaces_and_the_same_answer_does_not(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1)])
    ada = person("Ada")
    judgement = judge(ada, choice=0)
    assert store.correct(ada, judgement, {"choice": 0}).status == "repeated"
    corrected = store.correct(ada, judgement, {"choice": 1})
    assert corrected.status == "saved"
    (entry,) = store.history(ada)
    assert entry.corrected
    assert entry.answer == {"choice": 1}
    assert store.correct(ada, judgement, {"choice": 0}).status == "unknown"  # it counts no more


def test_an_answer_before_the_minimum_is_refused_and_a_skip_is_not(store: Store, person: Person, clock: Clock) -> None:
    store.add([pair(1), pair(2)])
    store.update_settings(minimum_seconds=5.0)
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    clock.now += 2
    with pytest.raises(TooFastError) as caught:
        store.save(ada, lease.id, {"choice": 0})
    assert caught.value.wait == 3.0
    clock.now += 3
    assert store.save(ada, lease.id, {"choice": 0}).status == "saved"
    following = store.next(ada)
    assert following is not None
    assert store.save(ada, following.id, {"skip": True}).status == "saved"


def test_an_answer_of_the_wrong_form_leaves_nothing_behind(store: Store, person: Person) -> None:
    store.add([pair(1)])
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    with pytest.raises(InvalidAnswerError):
        store.save(ada, lease.id, {"choice": 2})
    assert store.history(ada) == []
    assert store.next(ada) == lease


def test_training_comes_first_and_is_told(store: Store, person: Person) -> None:
    store.add([pair(1), pair(2, purpose="training", answer={"choice": 1}, explanation="because")])
    token = store.invite("Ada")
    ada = store.invited(token)
    assert ada is not None
    assert not ada.trained
    lease = store.next(ada.id)
    assert lease is not None
    assert (lease.purpose, lease.item.explanation) == ("training", "because")
    saved = store.save(ada.id, lease.id, {"choice": 0})
    assert saved.correct is False
    answered = store.lease(ada.id, lease.id)
    assert answered is not None
    assert answered.answer == {"choice": 0}
    trained = store.invited(token)
    assert trained is not None
    assert trained.trained
    assert store.history(ada.id) == []
    assert store.undo(ada.id) is None


def test_gold_is_asked_of_everybody_and_not_told(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(i, wanted=2) for i in range(30)])
    store.add([pair(100 + i, purpose="gold", answer={"choice": 0}) for i in range(3)])
    store.update_settings(gold_share=0.5)
    for name in ("Ada", "Bob"):
        somebody, purposes = person(name), []
        while (lease := store.next(somebody)) is not None:
            purposes.append(lease.purpose)
            assert store.save(somebody, lease.id, {"choice": 0}).correct is None
        assert purposes.count("gold") == 3
        assert purposes.count("item") == 30


def test_no_gold_where_the_share_is_zero(store: Store, person: Person) -> None:
    store.add([pair(1), pair(2, purpose="gold", answer={"choice": 0})])
    store.update_settings(gold_share=0.0)
    ada = person("Ada")
    while (lease := store.next(ada)) is not None:
        assert lease.purpose == "item"
        store.save(ada, lease.id, {"choice": 0})


def test_which_model_generated_what_is_not_in_a_lease(store: Store, person: Person) -> None:
    store.add([pair(1, answer={"choice": 0})])
    lease = store.next(person("Ada"))
    assert lease is not None
    assert "model a" not in repr(lease)
    assert lease.item.answer is None  # what a file recorded is no known answer


def test_media_are_kept_in_the_store(store: Store) -> None:
    from rlhf_lightning.feedback.items import Media

    image = Media("image/gif", b"GIF89a")
    responses = (NewResponse(None, media=image), NewResponse("text"))
    assert store.add([NewItem("pair", "prompt", responses)]) == 1
    assert store.media(1, 0) == ("image/gif", b"GIF89a")
    assert store.media(1, 1) is None
    assert store.media(7, 0) is None


def test_an_item_that_is_there_is_not_added_again(store: Store) -> None:
    assert store.add([pair(1), pair(1), pair(2)]) == 2
    assert store.add([pair(2), pair(3)]) == 1
    turned = NewItem("pair", "prompt 1", pair(1).responses[::-1])
    assert store.add([turned]) == 0
    assert store.add([NewItem("pair", "prompt 1", pair(1).responses, round=1)]) == 1


def test_ids_beyond_those_of_sqlite_are_nobodys(store: Store, person: Person, judge: Judge) -> None:
    store.add([pair(1)])
    ada = person("Ada")
    judge(ada, choice=0)
    huge = 10**30
    assert store.lease(ada, huge) is None
    assert store.save(ada, huge, {"choice": 0}).status == "unknown"
    assert store.correct(ada, huge, {"choice": 0}).status == "unknown"
    assert store.entry(ada, huge) is None
    assert store.media(huge, huge) is None
    assert store.judgements_of(-huge) == []
    assert len(store.history(ada, before=huge)) == 1


def test_a_transaction_that_reads_cannot_begin_to_write(store: Store) -> None:
    with store.database.read(), pytest.raises(AssertionError, match="cannot begin to write"):
        store.add([pair(1)])
    assert store.add([pair(1)]) == 1


def test_a_snapshot_sees_one_state_and_keeps_nobody_waiting(store: Store) -> None:
    with store.database.snapshot() as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone()[0] == 0
        store.add([pair(1)])
        assert connection.execute("SELECT count(*) FROM items").fetchone()[0] == 0


@pytest.mark.parametrize(("shown", "kept"), [(None, 2), (2, 2), (1, 1), (0, None), (9, 2)])
def test_a_judgement_keeps_the_guidelines_that_its_page_showed(
    store: Store, person: Person, shown: int | None, kept: int | None
) -> None:
    store.add([pair(1)])
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    for text in ("first", "second"):
        store.set_guidelines(text)
    saved = store.save(ada, lease.id, {"choice": 1}, guidelines=shown)
    assert saved.judgement_id is not None
    store.correct(ada, saved.judgement_id, {"choice": 0}, guidelines=shown)
    with store.database.read() as connection:
        assert [row[0] for row in connection.execute("SELECT guidelines FROM judgements")] == [kept, kept]


def test_a_clock_that_is_set_back_keeps_nobody_waiting(store: Store, person: Person, clock: Clock) -> None:
    store.add([pair(1)])
    store.update_settings(minimum_seconds=5.0)
    ada = person("Ada")
    lease = store.next(ada)
    assert lease is not None
    clock.now -= 3600
    assert lease.wait(5.0, clock.now) == 0
    assert store.save(ada, lease.id, {"choice": 0}).status == "saved"

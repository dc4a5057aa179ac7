"""Judgements: appended, never changed; what counts now is derived from them and can be derived as of any of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.answers import Answer, agree, checked, correct
from rlhf_lightning.feedback.items import Item, NewItem, read_item
from rlhf_lightning.feedback.leases import Lease, WorkQueue


class TooFastError(UserError):
    """An answer came sooner than the settings' minimum."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"that was quick: read both responses, and answer in {wait:.1f} seconds or later")
        self.wait = wait


@dataclass(frozen=True)
class Saved:
    """What became of a form.

    `saved`: it counts. `repeated`: the annotator's judgement of this item was saved before, and nothing changes. `expired`: the
    lease had expired and others took the place, so the answer is not needed. `unknown`: no such form was given to this annotator.
    """

    status: Literal["saved", "repeated", "expired", "unknown"]
    judgement_id: int | None = None
    correct: bool | None = None
    """Of a training item: whether the answer is the known one."""


@dataclass(frozen=True)
class Entry:
    """A judgement that counts now."""

    judgement_id: int
    item: Item
    order: tuple[int, ...]
    answer: Answer
    seconds: float | None
    at: float
    corrected: bool
    pseudonym: str = field(default="", repr=False)


class Viewing(NamedTuple):
    """How an annotator saw an item, as the page reports it."""

    seconds: float | None = None
    """That the annotator took."""
    guidelines: int | None = None
    """The version on the page, 0 for none; None takes the newest."""


class Place(NamedTuple):
    """Where one judgement counts at a time."""

    item: int
    annotator: int
    adjudication: int


def save(queue: WorkQueue, annotator: int, lease_id: int, answer: Answer, viewing: Viewing) -> Saved:
    """Append the judgement that a form gives.

    Raises:
        InvalidAnswerError: the answer has not the item's form.
        TooFastError: it comes too soon.
    """
    connection = queue.connection
    lease = queue.lease(annotator, lease_id)
    if lease is None:
        return Saved("unknown")
    place = Place(lease.item.id, annotator, int(lease.purpose == "adjudication"))
    earlier = _judgement_of(connection, lease_id, place)
    if earlier is not None:
        return Saved("repeated", earlier["id"], _told(lease, json.loads(earlier["answer"])))
    answer = checked(
        answer, lease.item.kind, len(lease.item.responses), lease.item.criteria, reasons=queue.settings.reasons
    )
    wait = lease.wait(queue.settings.minimum_seconds, queue.now)
    if wait > 0 and not answer.get("skip"):
        raise TooFastError(wait)
    if not _wanted(queue, lease, place):
        return Saved("expired")
    judgement = _append(queue, place, "judge", answer, lease.order, viewing, lease=lease_id)
    connection.execute("UPDATE leases SET closed = 1 WHERE id = ?", (lease_id,))
    return Saved("saved", judgement, _told(lease, answer))


def _judgement_of(connection: sqlite3.Connection, lease: int, place: Place) -> sqlite3.Row | None:
    """Return the judgement of this form, or the one that counts at its place: another tab may have sent it."""
    found: sqlite3.Row | None = connection.execute(
        "SELECT id, answer FROM judgements WHERE lease = ? UNION ALL SELECT id, answer FROM latest JOIN judgements ON "
        "id = judgement WHERE latest.item = ? AND latest.annotator = ? AND latest.adjudication = ? "
        "AND NOT (latest.adjudication AND skipped) LIMIT 1",
        (lease, *place),
    ).fetchone()
    return found


def _told(lease: Lease, answer: Answer) -> bool | None:
    return correct(lease.item.kind, answer, lease.item.answer) if lease.purpose == "training" else None


def _wanted(queue: WorkQueue, lease: Lease, place: Place) -> bool:
    """Whether an item still takes this judgement: a live lease keeps the place, a late answer needs one that is free."""
    if place.adjudication:
        row = queue.connection.execute("SELECT state FROM items WHERE id = ?", (place.item,)).fetchone()
        return bool(row["state"] == "disputed")
    return lease.purpose != "item" or queue.room(place.annotator, place.item)


def amend(queue: WorkQueue, annotator: int, judgement: int, answer: Answer, viewing: Viewing) -> Saved:
    """Append a correction of one's own judgement."""
    row = _latest(queue.connection, annotator, judgement)
    if row is None:
        return Saved("unknown")
    item = read_item(queue.connection, row["item"])
    answer = checked(answer, item.kind, len(item.responses), item.criteria, reasons=queue.settings.reasons)
    if answer == json.loads(row["answer"]):
        return Saved("repeated", judgement)
    place = Place(row["item"], annotator, row["adjudication"])
    taken = row["skipped"] and not answer.get("skip") and row["purpose"] == "item" and not place.adjudication
    if taken and not queue.room(annotator, item.id):
        return Saved("expired")
    order = tuple(json.loads(row["ordering"]))
    return Saved("saved", _append(queue, place, "correct", answer, order, viewing, replaces=judgement))


def undo(queue: WorkQueue, annotator: int) -> Lease | None:
    """Withdraw the annotator's newest judgement and ask the item again, in the same order; None where there is none.

    Training is over once answered. A skipped item that others have filled in the meantime stays skipped.
    """
    row = queue.connection.execute(
        "SELECT judgement FROM latest JOIN items ON id = item WHERE annotator = ? AND purpose != 'training' "
        "ORDER BY judgement DESC LIMIT 1",
        (annotator,),
    ).fetchone()
    found = row and _latest(queue.connection, annotator, row["judgement"])
    if found is None:
        return None
    place = Place(found["item"], annotator, found["adjudication"])
    if (
        found["skipped"]
        and found["purpose"] == "item"
        and not place.adjudication
        and not queue.room(annotator, place.item)
    ):
        return None
    order = tuple(json.loads(found["ordering"]))
    _append(queue, place, "undo", None, order, Viewing(), replaces=found["id"])
    return queue.assign(annotator, place.item, adjudication=bool(place.adjudication), order=order)


def _latest(connection: sqlite3.Connection, annotator: int, judgement: int) -> sqlite3.Row | None:
    found: sqlite3.Row | None = connection.execute(
        "SELECT judgements.*, skipped, purpose FROM latest JOIN judgements ON judgements.id = judgement "
        "JOIN items ON items.id = latest.item WHERE latest.annotator = ? AND judgement = ?",
        (annotator, judgement),
    ).fetchone()
    return found


def _append(
    queue: WorkQueue,
    place: Place,
    action: str,
    answer: Answer | None,
    order: tuple[int, ...],
    viewing: Viewing,
    replaces: int | None = None,
    lease: int | None = None,
) -> int:
    """Append a row, and update the latest judgement at its place and the state of its item."""
    connection = queue.connection
    shown = "SELECT max(version) FROM guidelines WHERE ?1 IS NULL OR version <= ?1"
    guidelines = connection.execute(shown, (viewing.guidelines,)).fetchone()[0]
    text = None if answer is None else json.dumps(answer)
    values = (place.annotator, place.item, action, place.adjudication, replaces, lease, text, json.dumps(order))
    judgement = connection.execute(
        "INSERT INTO judgements (annotator, item, action, adjudication, replaces, lease, answer, ordering, seconds, "
        "guidelines, time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, viewing.seconds, guidelines, queue.now),
    ).lastrowid
    connection.execute("DELETE FROM latest WHERE item = ? AND annotator = ? AND adjudication = ?", place)
    if answer is not None:
        skipped = bool(answer.get("skip"))
        connection.execute("INSERT INTO latest VALUES (?, ?, ?, ?, ?)", (*place, judgement, skipped))
    _update_state(connection, place.item)
    return judgement or 0


def record(queue: WorkQueue, annotator: int, item_key: str, answer: Answer) -> bool:
    """Append a judgement that was made elsewhere, without a lease; False where the annotator has judged the item.

    Raises:
        InvalidAnswerError: the answer has not the item's form.
    """
    connection = queue.connection
    row = connection.execute("SELECT id FROM items WHERE key = ?", (item_key,)).fetchone()
    item = read_item(connection, row["id"])
    place = Place(item.id, annotator, 0)
    if connection.execute(
        "SELECT 1 FROM latest WHERE item = ? AND annotator = ? AND adjudication = ?", place
    ).fetchone():
        return False
    answer = checked(answer, item.kind, len(item.responses), item.criteria)
    _append(queue, place, "judge", answer, tuple(range(len(item.responses))), Viewing())
    return True


def raise_wanted(connection: sqlite3.Connection, items: Iterable[NewItem]) -> int:
    """Ask more judgements of items that are in the store already; none of them is asked fewer.

    Returns:
        How many items take more judgements than before.
    """
    raised = 0
    for item in items:
        row = connection.execute(
            "UPDATE items SET wanted = ?1 WHERE key = ?2 AND wanted < ?1 RETURNING id", (item.wanted, item.key)
        ).fetchone()
        if row is not None:
            _update_state(connection, row["id"])
            raised += 1
    return raised


def _update_state(connection: sqlite3.Connection, item: int) -> None:
    """Count an item's judgements and settle it where all agree; gold and training items stay open to everybody."""
    row = connection.execute("SELECT kind, purpose, wanted FROM items WHERE id = ?", (item,)).fetchone()
    if row["purpose"] != "item":
        return
    found = connection.execute(
        "SELECT latest.adjudication, answer FROM latest JOIN judgements ON id = judgement "
        "WHERE latest.item = ? AND skipped = 0",
        (item,),
    ).fetchall()
    answers = [json.loads(answer) for adjudication, answer in found if not adjudication]
    if len(answers) < len(found):
        state = "adjudicated"
    elif len(answers) < row["wanted"]:
        state = "open"
    else:
        state = "settled" if agree(row["kind"], answers) else "disputed"
    connection.execute("UPDATE items SET judged = ?, state = ? WHERE id = ?", (len(answers), state, item))


def latest_at(connection: sqlite3.Connection, judgement: int | None = None) -> dict[Place, int]:
    """Derive which judgements counted right after the one with this id, from the appended rows alone; None: now."""
    found: dict[Place, int] = {}
    rows = connection.execute(
        "SELECT id, item, annotator, adjudication, action FROM judgements WHERE ? IS NULL OR id <= ? ORDER BY id",
        (judgement, judgement),
    )
    for row in rows:
        place = Place(row["item"], row["annotator"], row["adjudication"])
        if row["action"] == "undo":
            del found[place]
        else:
            found[place] = row["id"]
    return found


def entries(connection: sqlite3.Connection, condition: str, values: tuple[object, ...], limit: int) -> list[Entry]:
    """Read judgements that count now, the newest first."""
    rows = connection.execute(
        "SELECT judgements.*, pseudonym FROM latest JOIN judgements ON judgements.id = judgement "
        "JOIN items ON items.id = latest.item JOIN annotators ON annotators.id = latest.annotator "
        f"WHERE {condition} ORDER BY judgement DESC LIMIT ?",
        (*values, limit),
    ).fetchall()
    return [
        Entry(
            judgement_id=row["id"],
            item=read_item(connection, row["item"]),
            order=tuple(json.loads(row["ordering"])),
            answer=json.loads(row["answer"]),
            seconds=row["seconds"],
            at=row["time"],
            corrected=row["action"] == "correct",
            pseudonym=row["pseudonym"],
        )
        for row in rows
    ]

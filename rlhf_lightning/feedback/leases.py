"""Leases: who is asked what at present, in which order the responses are shown, and until when the place is kept."""

from __future__ import annotations

import json
import random
import sqlite3
from dataclasses import dataclass, field

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.answers import Answer
from rlhf_lightning.feedback.items import Item, read_item
from rlhf_lightning.feedback.settings import Settings

NEXT_ITEM = """
SELECT id FROM items WHERE purpose = 'item' AND state = 'open'
AND NOT EXISTS (SELECT 1 FROM latest WHERE item = items.id AND annotator = :annotator AND adjudication = 0)
AND judged + (
    SELECT count(*) FROM leases
    WHERE item = items.id AND closed = 0 AND expires > :now AND adjudication = 0 AND annotator != :annotator
) < wanted
ORDER BY rank, id LIMIT 1
"""
NEXT_KNOWN = """
SELECT id FROM items WHERE purpose = :purpose AND state = 'open'
AND NOT EXISTS (SELECT 1 FROM latest WHERE item = items.id AND annotator = :annotator AND adjudication = 0)
ORDER BY rank, id LIMIT 1
"""
ROOM = """
SELECT judged + (
    SELECT count(*) FROM leases
    WHERE item = items.id AND closed = 0 AND expires > :now AND adjudication = 0 AND annotator != :annotator
) < wanted FROM items WHERE id = :item
"""


@dataclass(frozen=True)
class Lease:
    """An item that one annotator is asked; the form that the page shows sends its id back, and counts once."""

    id: int
    item: Item
    order: tuple[int, ...]
    """Index of the response at each position; shuffled for each lease, and recorded with the judgement."""
    purpose: str
    """`item`, `gold`, `training` or `adjudication`."""
    opened: float
    expires: float
    answer: Answer | None = field(default=None, repr=False)
    """The answer that this lease's form gave; None as long as it gave none."""

    def wait(self, minimum: float, now: float) -> float:
        """Return the seconds until an answer is taken; 0 where the clock was set back, as nobody knows how long it took."""
        elapsed = now - self.opened
        return max(0.0, minimum - elapsed) if elapsed >= 0 else 0.0


@dataclass(frozen=True)
class WorkQueue:
    """Assigns items to annotators, within one transaction."""

    connection: sqlite3.Connection
    settings: Settings
    now: float
    rng: random.Random

    def next(self, annotator: int) -> Lease | None:
        """Return the annotator's open lease, or a new one: training first, then items with gold among them."""
        row = self._open(annotator)
        if row is not None and not row["adjudication"] and row["expires"] > self.now:
            if row["expires"] - self.now < self.settings.lease_seconds / 2:
                self._renew(row["id"])
            return self.lease(annotator, row["id"])
        item = self._next(annotator)
        return None if item is None else self.assign(annotator, item)

    def peek(self, annotator: int) -> Lease | None:
        """Return the annotator's open lease if it needs no renewal: this writes nothing."""
        row = self._open(annotator)
        if row is None or row["adjudication"] or row["expires"] - self.now < self.settings.lease_seconds / 2:
            return None
        return self.lease(annotator, row["id"])

    def _open(self, annotator: int) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self.connection.execute(
            "SELECT * FROM leases WHERE annotator = ? AND closed = 0", (annotator,)
        ).fetchone()
        return found

    def _renew(self, lease: int) -> None:
        self.connection.execute(
            "UPDATE leases SET expires = ? WHERE id = ?", (self.now + self.settings.lease_seconds, lease)
        )

    def _next(self, annotator: int) -> int | None:
        training = self._first(NEXT_KNOWN, annotator=annotator, purpose="training")
        if training is not None:
            return training
        item = self._first(NEXT_ITEM, annotator=annotator, now=self.now)
        if item is not None and self.settings.gold_share > self.rng.random():
            gold = self._first(NEXT_KNOWN, annotator=annotator, purpose="gold")
            return item if gold is None else gold
        return item

    def _first(self, query: str, **values: object) -> int | None:
        row = self.connection.execute(query, values).fetchone()
        return None if row is None else int(row[0])

    def room(self, annotator: int, item: int) -> bool:
        """Whether the item takes one more judgement, beside those that others have a lease for."""
        values = {"annotator": annotator, "item": item, "now": self.now}
        return bool(self.connection.execute(ROOM, values).fetchone()[0])

    def assign(
        self, annotator: int, item: int, adjudication: bool = False, order: tuple[int, ...] | None = None
    ) -> Lease:
        """Lease an item; a lease that the annotator has open ends, as nobody judges two items at once."""
        if order is None:
            count = self.connection.execute("SELECT count(*) FROM responses WHERE item = ?", (item,)).fetchone()[0]
            order = tuple(self.rng.sample(range(count), count))
        self.connection.execute("UPDATE leases SET closed = 1 WHERE annotator = ? AND closed = 0", (annotator,))
        cursor = self.connection.execute(
            "INSERT INTO leases (annotator, item, adjudication, ordering, opened, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (annotator, item, adjudication, json.dumps(order), self.now, self.now + self.settings.lease_seconds),
        )
        found = self.lease(annotator, cursor.lastrowid or 0)
        assert found is not None
        return found

    def lease(self, annotator: int, lease: int) -> Lease | None:
        """Return a lease of this annotator, open or not; None where it is another's or there is none."""
        row = self.connection.execute(
            "SELECT leases.*, purpose, judgements.answer FROM leases JOIN items ON items.id = leases.item "
            "LEFT JOIN judgements ON judgements.lease = leases.id WHERE leases.id = ? AND leases.annotator = ?",
            (lease, annotator),
        ).fetchone()
        if row is None:
            return None
        return Lease(
            id=row["id"],
            item=read_item(self.connection, row["item"]),
            order=tuple(json.loads(row["ordering"])),
            purpose="adjudication" if row["adjudication"] else row["purpose"],
            opened=row["opened"],
            expires=row["expires"],
            answer=None if row["answer"] is None else json.loads(row["answer"]),
        )

    def adjudicate(self, annotator: int, item: int) -> Lease:
        """Lease a disputed item to decide it.

        Raises:
            UserError: the annotator is no adjudicator, the item is not disputed, or another adjudicator has it.
        """
        person = self.connection.execute("SELECT roles FROM annotators WHERE id = ?", (annotator,)).fetchone()
        if person is None or not {"adjudicator", "owner"} & set(person["roles"].split()):
            raise UserError("only an adjudicator or an owner decides disputed items; ask the owner for an invitation")
        state = self.connection.execute("SELECT state FROM items WHERE id = ?", (item,)).fetchone()
        if state is None or state["state"] != "disputed":
            raise UserError(f"item {item} is not disputed; go back to the list of disputed items")
        row = self._open(annotator)
        if row is not None and row["adjudication"] and row["item"] == item and row["expires"] > self.now:
            found = self.lease(annotator, row["id"])
            assert found is not None
            return found
        taken = self.connection.execute(
            "SELECT 1 FROM leases WHERE item = ? AND closed = 0 AND expires > ? AND adjudication = 1 AND annotator != ?",
            (item, self.now, annotator),
        ).fetchone()
        if taken:
            raise UserError(f"item {item} is with another adjudicator at present; take another one")
        return self.assign(annotator, item, adjudication=True)


def rng_of(connection: sqlite3.Connection, seed: int | None) -> random.Random | None:
    """Return random numbers that are a function of the seed and of the number of leases so far; None without a seed."""
    if seed is None:
        return None
    leases = connection.execute("SELECT coalesce(max(id), 0) FROM leases").fetchone()[0]
    return random.Random(f"{seed} {leases}")

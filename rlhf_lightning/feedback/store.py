"""The store of human feedback: one SQLite file with items, annotators, leases and judgements.

A page uses it like this; every call is one short transaction, and all threads of a process may share one `Store`:

    store = Store(Path("feedback.db"))                 # create=True makes a new one
    store.database.lock_for_serving()                  # a second server of one store is refused
    token = store.invite("Ada")                        # shown once; the store keeps its hash
    ada = store.invited(token)                         # None: no such invitation
    session = store.open_session(ada.id)               # for a cookie; store.session(session) is ada, until she is forgotten
    lease = store.next(ada.id)                         # an item, the order of its responses, an id for the form; None: all done
    saved = store.save(ada.id, lease.id, {"choice": 0}, seconds=4.2)     # and leases the next item in the same transaction
    store.undo(ada.id), store.history(ada.id), store.correct(ada.id, saved.judgement_id, {"choice": "tie"}, seconds=None)
    store.disputed(), store.adjudicate(ada.id, item_id)                  # items on which annotators differ

Answers name responses by their index in the item (see `answers`). A lease's form counts once, however often it is sent.
Judgements are only appended: an undo and a correction are rows too, and `latest(id)` is what counted right after any of them.
A transaction that has returned is on the disk; one that fails, on a full disk for instance, leaves nothing behind and raises
`StoreUnavailableError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rlhf_lightning.feedback import people
from rlhf_lightning.feedback.answers import Answer
from rlhf_lightning.feedback.database import Database
from rlhf_lightning.feedback.items import NewItem, add_items, read_media
from rlhf_lightning.feedback.judgements import (
    Entry,
    Place,
    Saved,
    Viewing,
    amend,
    entries,
    latest_at,
    raise_wanted,
    record,
    save,
    undo,
)
from rlhf_lightning.feedback.leases import Lease, WorkQueue, rng_of
from rlhf_lightning.feedback.people import Annotator
from rlhf_lightning.feedback.settings import Settings, read_settings, write_settings

ITEMS_AT_A_TIME = 500
ALL = 2**62
"""A limit on rows that limits nothing."""


class Store(AbstractContextManager["Store"]):
    """Human feedback in one file.

    Args:
        path: the file.
        create: make it where it is missing.
        clock: seconds since 1970.
        rng: shuffles responses and mixes gold items in.

    Raises:
        UserError: the file is missing, is no store, or a newer version of this library wrote it.
    """

    def __init__(
        self,
        path: str | Path,
        create: bool = False,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.database = Database(Path(path), create)
        self._clock, self._rng = clock, rng or random.SystemRandom()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a server's lock on it ends."""
        self.database.close()

    # settings

    @property
    def settings(self) -> Settings:
        """The settings as they are now."""
        with self.database.read() as connection:
            return read_settings(connection)

    def update_settings(self, **values: Any) -> Settings:
        """Change some settings.

        Raises:
            UserError: a value is outside its range.
        """
        with self.database.write() as connection:
            settings = dataclasses.replace(read_settings(connection), **values)
            write_settings(connection, settings)
        return settings

    def set_guidelines(self, text: str) -> int:
        """Return the version of this text; a text that differs from the newest one becomes a new version."""
        with self.database.write() as connection:
            newest = connection.execute("SELECT * FROM guidelines ORDER BY version DESC LIMIT 1").fetchone()
            if newest is not None and newest["text"] == text:
                return int(newest["version"])
            values = (text, self._clock())
            return connection.execute("INSERT INTO guidelines (text, created) VALUES (?, ?)", values).lastrowid or 0

    def guidelines(self) -> tuple[int, str]:
        """Return the newest version and its text; (0, "") where there are none."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM guidelines ORDER BY version DESC LIMIT 1").fetchone()
        return (0, "") if row is None else (row["version"], row["text"])

    # people

    def invite(self, name: str, roles: tuple[str, ...] = ("annotator",), pseudonym: str | None = None) -> str:
        """Return a new token for somebody; an earlier one ends. See `people.invite`."""
        with self.database.write() as connection:
            return people.invite(connection, name, roles, self._clock(), pseudonym)

    def invited(self, token: str) -> Annotator | None:
        """Return whose invitation a token is; None where it is nobody's."""
        with self.database.read() as connection:
            return people.invited(connection, token)

    def forget(self, name: str) -> None:
        """Delete a name from the file; judgements stay under the pseudonym. See `people.forget`."""
        with self.database.write() as connection:
            people.forget(connection, name)
        self.database.purge()

    def people(self) -> list[Annotator]:
        """Return everybody who was invited or imported, the forgotten too."""
        with self.database.read() as connection:
            ids = [row["id"] for row in connection.execute("SELECT id FROM annotators ORDER BY id")]
            return [found for identity in ids if (found := people.annotator(connection, identity)) is not None]

    def open_session(self, annotator_id: int) -> str:
        """Return the token of a new session of 30 days."""
        with self.database.write() as connection:
            return people.open_session(connection, annotator_id, self._clock())

    def session(self, token: str) -> Annotator | None:
        """Return whose session a token is; None where it is nobody's, or has ended."""
        with self.database.read() as connection:
            return people.session(connection, token, self._clock())

    def close_session(self, token: str) -> None:
        """End a session."""
        with self.database.write() as connection:
            people.close_session(connection, token)

    # judging

    def next(self, annotator_id: int) -> Lease | None:
        """Return what the annotator is asked now: the open lease, else a new one; None where nothing is left."""
        with self._queue(write=False) as queue:
            found = queue.peek(annotator_id)
        if found is not None:
            return found
        with self._queue() as queue:
            return queue.next(annotator_id)

    def lease(self, annotator_id: int, lease_id: int) -> Lease | None:
        """Return a lease of this annotator in any state; None for another's."""
        with self._queue(write=False) as queue:
            return queue.lease(annotator_id, _id(lease_id))

    def save(
        self,
        annotator_id: int,
        lease_id: int,
        answer: Answer,
        *,
        seconds: float | None = None,
        guidelines: int | None = None,
    ) -> Saved:
        """Save the answer to a lease, and lease the next item to the annotator.

        Args:
            annotator_id: who answers. lease_id: of the form. answer: see `answers`.
            seconds: that the annotator took, as the page measured them.
            guidelines: the version that the page showed, 0 for none; None takes the newest.

        Raises:
            InvalidAnswerError: the answer has not the item's form.
            TooFastError: it comes sooner than the settings' minimum.
            StoreUnavailableError: nothing was saved.
        """
        with self._queue() as queue:
            saved = save(queue, annotator_id, _id(lease_id), answer, Viewing(_seconds(seconds), guidelines))
            if saved.status == "saved":
                queue.next(annotator_id)
            return saved

    def correct(
        self,
        annotator_id: int,
        judgement_id: int,
        answer: Answer,
        *,
        seconds: float | None = None,
        guidelines: int | None = None,
    ) -> Saved:
        """Replace an own judgement that counts now; the same answer again changes nothing.

        Takes and raises what `save` does.
        """
        with self._queue() as queue:
            return amend(queue, annotator_id, _id(judgement_id), answer, Viewing(_seconds(seconds), guidelines))

    def undo(self, annotator_id: int) -> Lease | None:
        """Withdraw the newest own judgement and lease its item again; None where there is nothing to undo."""
        with self._queue() as queue:
            return undo(queue, annotator_id)

    def history(self, annotator_id: int, *, before: int | None = None, limit: int = 50) -> list[Entry]:
        """Return own judgements that count now, the newest first; `before` is the last id of the page before."""
        with self.database.read() as connection:
            condition = "latest.annotator = ? AND judgement < ? AND purpose != 'training'"
            return entries(connection, condition, (annotator_id, ALL if before is None else _id(before)), limit)

    def entry(self, annotator_id: int, judgement_id: int) -> Entry | None:
        """Return one own judgement that counts now; None for another's and for one that was replaced."""
        with self.database.read() as connection:
            found = entries(connection, "latest.annotator = ? AND judgement = ?", (annotator_id, _id(judgement_id)), 1)
        return found[0] if found else None

    def progress_of(self, annotator_id: int) -> tuple[int, int]:
        """Return how many items the annotator has answered, and that number plus those that he could be asked now."""
        with self.database.read() as connection:
            return _progress(connection, annotator_id)

    def media(self, item_id: int, response: int) -> tuple[str, bytes] | None:
        """Return the media type and the bytes of a response's image; None where it has none."""
        with self.database.read() as connection:
            return read_media(connection, _id(item_id), _id(response))

    # adjudication

    def disputed(self) -> list[tuple[int, int]]:
        """Return (item, number of judgements) of every item on which annotators differ."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT id, judged FROM items WHERE purpose = 'item' AND state = 'disputed' ORDER BY rank, id"
            )
            return [(row["id"], row["judged"]) for row in rows]

    def adjudicate(self, annotator_id: int, item_id: int) -> Lease:
        """Lease a disputed item to an adjudicator; `save` then decides it. See `WorkQueue.adjudicate`."""
        with self._queue() as queue:
            return queue.adjudicate(annotator_id, _id(item_id))

    def judgements_of(self, item_id: int) -> list[Entry]:
        """Return all judgements of an item that count now, with pseudonyms, the oldest first."""
        with self.database.read() as connection:
            return entries(connection, "latest.item = ? AND skipped = 0", (_id(item_id),), ALL)[::-1]

    # content

    def add(self, items: Iterable[NewItem]) -> int:
        """Append items to the queue and return how many are new; one that is there already stays as it is.

        See `raise_wanted` for more judgements of it.

        Many items take several transactions, so that a server of the store can save between them.
        """
        remaining, added = iter(items), 0
        while chunk := list(itertools.islice(remaining, ITEMS_AT_A_TIME)):
            with self.database.write() as connection:
                added += add_items(connection, chunk, self._clock())
        return added

    def raise_wanted(self, items: Iterable[NewItem]) -> int:
        """Ask more judgements of items that are there already, and return of how many; none is asked fewer."""
        remaining, raised = iter(items), 0
        while chunk := list(itertools.islice(remaining, ITEMS_AT_A_TIME)):
            with self.database.write() as connection:
                raised += raise_wanted(connection, chunk)
        return raised

    def record(self, item_key: str, pseudonym: str, answer: Answer) -> bool:
        """Append a judgement that was made elsewhere; False where this annotator has judged the item already."""
        with self._queue() as queue:
            row = queue.connection.execute("SELECT id FROM annotators WHERE pseudonym = ?", (pseudonym,)).fetchone()
            annotator = row["id"] if row else people.add_annotator(queue.connection, "annotator", queue.now, pseudonym)
            return record(queue, annotator, item_key, answer)

    def latest(self, judgement_id: int | None = None) -> dict[Place, int]:
        """Derive from the appended rows which judgement counted at each place right after this one; None: now."""
        with self.database.read() as connection:
            return latest_at(connection, judgement_id)

    @contextlib.contextmanager
    def _queue(self, write: bool = True) -> Iterator[WorkQueue]:
        with self.database.write() if write else self.database.read() as connection:
            settings = read_settings(connection)
            yield WorkQueue(connection, settings, self._clock(), rng_of(connection, settings.seed) or self._rng)


def _id(number: int) -> int:
    """Return an id that SQLite can hold; a larger number, which an address may have, is nobody's."""
    return max(-1, min(number, ALL))


def _seconds(seconds: float | None) -> float | None:
    """A page's own measurement: what is no time is unknown."""
    return seconds if seconds is not None and math.isfinite(seconds) and seconds >= 0 else None


def _progress(connection: sqlite3.Connection, annotator: int) -> tuple[int, int]:
    done, among_open = connection.execute(
        "SELECT count(*), coalesce(sum(purpose = 'item' AND state = 'open'), 0) FROM latest JOIN items ON id = item "
        "WHERE annotator = ? AND adjudication = 0 AND purpose != 'training'",
        (annotator,),
    ).fetchone()
    still_open = connection.execute("SELECT count(*) FROM items WHERE purpose = 'item' AND state = 'open'").fetchone()[
        0
    ]
    return done, done + still_open - among_open


@contextlib.contextmanager
def removed_if_new(path: Path) -> Iterator[None]:
    """Remove a store that a failed command has made and left without items."""
    is_new = not Path(path).exists()
    try:
        yield
    except BaseException:
        if is_new and Path(path).is_file():
            with Store(path) as store, store.database.read() as connection:
                kept = [
                    connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("items", "candidates")
                ]
            if not any(kept):
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise

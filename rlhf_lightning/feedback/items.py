"""Items: what annotators are asked, as it is added to a store and as it is read from one."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_lightning.feedback.answers import Answer

Content = str | list[dict[str, Any]]
"""Plain text, or messages with `role` and `content`."""


@dataclass(frozen=True)
class Media:
    """An image or GIF that is shown instead of, or beside, a response's text."""

    type: str
    """Media type, such as image/gif."""
    data: bytes

    @property
    def digest(self) -> str:
        """Under which the store keeps it, once."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class NewResponse:
    """A response of an item to add."""

    content: Content | None
    """None where the response is media alone."""
    model: str | None = None
    """Which model generated it; None where nobody knows."""
    media: Media | None = None


@dataclass(frozen=True)
class NewItem:
    """An item to add to a store."""

    kind: str
    """`pair`, `ranking`, `rating` or `edit`."""
    prompt: Content
    responses: tuple[NewResponse, ...]
    purpose: str = "item"
    """`item`, `gold` (the answer is known, the annotator is not told) or `training` (told after answering)."""
    answer: Answer | None = None
    """The known answer of a gold or training item; of another item, what the file it comes from recorded."""
    explanation: str | None = None
    """Shown after a training item is answered."""
    criteria: tuple[str, ...] = ()
    """Of a rating."""
    wanted: int = 1
    """Judgements that settle the item, where they agree."""
    round: int = 0
    """Of the feedback loop."""
    probability: float = 1.0
    """With which the item was chosen among the candidates."""

    @property
    def key(self) -> str:
        """A digest of everything that makes it another item; the order of a pair's responses does not."""
        criteria = [self.criteria] if self.criteria else []
        responses = sorted(digest([r.content, r.media and r.media.digest]) for r in self.responses)
        return digest([self.round, self.kind, self.purpose, self.prompt, responses, *criteria])


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str
    content: str


class Response(NamedTuple):
    """A response as an annotator may see it: without the name of the model."""

    text: str
    """Empty where the response is media alone."""
    media: bool
    """Whether `Store.media` has an image for it."""


@dataclass(frozen=True)
class Item:
    """An item as an annotator may see it: nothing in it says which model generated what."""

    id: int
    kind: str
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    criteria: tuple[str, ...]
    explanation: str | None = field(default=None, repr=False)
    answer: Answer | None = field(default=None, repr=False)
    """The known answer of a gold or training item, by the responses' indices."""


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's JSON.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def add_items(connection: sqlite3.Connection, items: Iterable[NewItem], now: float) -> int:
    """Append items to the queue; one that is there already stays as it is.

    Returns:
        How many are new.
    """
    last = connection.execute("SELECT coalesce(max(rank), 0) FROM items").fetchone()[0]
    added = 0
    for item in items:
        answer = None if item.answer is None else _json(item.answer)
        content = (item.key, item.kind, item.purpose, _json(item.prompt), _json(item.criteria), answer)
        more = (item.explanation, item.wanted, item.round, item.probability, last + added + 1, now)
        cursor = connection.execute(
            "INSERT INTO items (key, kind, purpose, prompt, criteria, answer, explanation, wanted, round, probability, rank, "
            "created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
            (*content, *more),
        )
        if cursor.rowcount:
            added += 1
            _add_responses(connection, cursor.lastrowid or 0, item.responses)
    return added


def _add_responses(connection: sqlite3.Connection, item: int, responses: tuple[NewResponse, ...]) -> None:
    for position, response in enumerate(responses):
        if (media := response.media) is not None:
            connection.execute(
                "INSERT INTO media VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (media.digest, media.type, media.data)
            )
        connection.execute(
            "INSERT INTO responses VALUES (?, ?, ?, ?, ?)",
            (item, position, _json(response.content), response.model, media and media.digest),
        )


def read_item(connection: sqlite3.Connection, item: int) -> Item:
    """Read the item with this id."""
    row = connection.execute("SELECT * FROM items WHERE id = ?", (item,)).fetchone()
    responses = connection.execute("SELECT * FROM responses WHERE item = ? ORDER BY position", (item,))
    return Item(
        id=row["id"],
        kind=row["kind"],
        prompt=messages(json.loads(row["prompt"])),
        responses=tuple(Response(text_of(json.loads(r["content"])), r["media"] is not None) for r in responses),
        criteria=tuple(json.loads(row["criteria"])),
        explanation=row["explanation"],
        answer=None if row["answer"] is None or row["purpose"] == "item" else json.loads(row["answer"]),
    )


def read_media(connection: sqlite3.Connection, item: int, position: int) -> tuple[str, bytes] | None:
    """Read the media type and the bytes of a response's image; None where it has none."""
    row = connection.execute(
        "SELECT type, data FROM media JOIN responses ON digest = media WHERE item = ? AND position = ?",
        (item, position),
    ).fetchone()
    return None if row is None else (row["type"], row["data"])


def messages(content: Content) -> tuple[Message, ...]:
    """Return the turns of a prompt; plain text is a user's turn.

    >>> messages("hi")
    (Message(role='user', content='hi'),)
    """
    turns = [{"role": "user", "content": content}] if isinstance(content, str) else content
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def text_of(content: Content | None) -> str:
    """Return the text of a response; an empty line separates several turns."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n\n".join(turn["content"] for turn in content)


def _json(value: Any) -> str:
    return json.dumps(value)  # ASCII: a lone surrogate of a form or a file is kept as it is

"""Items with the judgements that count now, as exports and statistics read them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field

from rlhf_lightning.feedback.answers import Answer
from rlhf_lightning.feedback.items import Content


@dataclass(frozen=True)
class Judged:
    """One annotator's judgement of an item."""

    id: int
    annotator: int
    pseudonym: str
    answer: Answer
    order: tuple[int, ...]
    """Index of the response at each position, as it was shown."""
    seconds: float | None
    guidelines: int | None
    time: float
    adjudication: bool

    @property
    def first_better(self) -> float:
        """Of a pair: 1 where the first response was chosen, 0 where the second was, 0.5 for a tie or both bad."""
        choice = self.answer["choice"]
        return 0.5 if choice in ("tie", "bad") else float(choice == 0)


@dataclass(frozen=True)
class Record:
    """An item and its judgements, skips not among them."""

    id: int
    kind: str
    purpose: str
    state: str
    prompt: Content
    responses: tuple[Content | None, ...]
    models: tuple[str | None, ...]
    criteria: tuple[str, ...]
    answer: Answer | None
    """The known answer of a gold or training item; of another item, what the file it comes from recorded."""
    round: int
    probability: float
    judgements: list[Judged] = field(default_factory=list)

    @property
    def votes(self) -> list[Judged]:
        """The judgements of annotators, an adjudicator's not among them."""
        return [judged for judged in self.judgements if not judged.adjudication]

    @property
    def deciding(self) -> list[Judged]:
        """The adjudicator's judgement where there is one, else the annotators'."""
        return [judged for judged in self.judgements if judged.adjudication][-1:] or self.votes


def read_records(connection: sqlite3.Connection, purposes: tuple[str, ...] = ("item",)) -> list[Record]:
    """Read every item of these purposes, in the order of the queue."""
    marks = ", ".join("?" * len(purposes))
    contents: dict[int, list[tuple[Content | None, str | None]]] = {}
    for row in connection.execute("SELECT item, content, model FROM responses ORDER BY item, position"):
        contents.setdefault(row["item"], []).append((json.loads(row["content"]), row["model"]))
    records = {
        row["id"]: _record(row, contents[row["id"]])
        for row in connection.execute(f"SELECT * FROM items WHERE purpose IN ({marks}) ORDER BY rank, id", purposes)
    }
    judgements = connection.execute(
        "SELECT judgements.*, pseudonym FROM latest JOIN judgements ON judgements.id = judgement "
        "JOIN annotators ON annotators.id = latest.annotator WHERE skipped = 0 ORDER BY judgement"
    )
    for row in judgements:
        if row["item"] in records:
            records[row["item"]].judgements.append(_judged(row))
    return list(records.values())


def _record(row: sqlite3.Row, responses: list[tuple[Content | None, str | None]]) -> Record:
    return Record(
        id=row["id"],
        kind=row["kind"],
        purpose=row["purpose"],
        state=row["state"],
        prompt=json.loads(row["prompt"]),
        responses=tuple(content for content, _ in responses),
        models=tuple(model for _, model in responses),
        criteria=tuple(json.loads(row["criteria"])),
        answer=None if row["answer"] is None else json.loads(row["answer"]),
        round=row["round"],
        probability=row["probability"],
    )


def _judged(row: sqlite3.Row) -> Judged:
    return Judged(
        id=row["id"],
        annotator=row["annotator"],
        pseudonym=row["pseudonym"],
        answer=json.loads(row["answer"]),
        order=tuple(json.loads(row["ordering"])),
        seconds=row["seconds"],
        guidelines=row["guidelines"],
        time=row["time"],
        adjudication=bool(row["adjudication"]),
    )

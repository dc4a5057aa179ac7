"""Argilla's pairwise form, read and made.

Two shapes are read: records of Argilla 2 (`dataset.records.to_json`), which have `fields` and `responses` by question, and
rows of a data set that Argilla 1 pushed to the hub, which have the fields and the question `preference` as columns. Records of
Argilla 2 are made. `rg.Record.from_dict` reads them into a data set with the fields prompt, response1 and response2 and a label
question `preference` with the labels response1, response2, tie and both_bad.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_lightning.feedback.answers import Answer
from rlhf_lightning.feedback.items import Content, text_of
from rlhf_lightning.feedback.records import Record

Row = dict[str, Any]

QUESTION = "preference"
LABELS: dict[str, int | str] = {"response1": 0, "response2": 1, "tie": "tie", "both_bad": "bad"}
NAMES = {choice: label for label, choice in LABELS.items()}
NAMESPACE = uuid.UUID("6f1c1d0a-3a55-4f0b-9f64-7a1f4c1f1c52")
"""Of the user ids that are made of pseudonyms; Argilla's are UUIDs."""


class ArgillaPair(NamedTuple):
    """A pair and what users said of it."""

    prompt: Any
    responses: tuple[Any, Any]
    answers: dict[str, Answer]
    """By user id."""


def is_argilla(row: Row) -> bool:
    """Whether a row has the pairwise form: a prompt, response1 and response2, whatever parts name and number."""
    fields = _fields(row)
    return "prompt" in fields and {"response1", "response2"} <= set(fields)


def read_pair(row: Row) -> ArgillaPair:
    """Read one record of either shape; drafts and discarded responses are skipped."""
    fields = _fields(row)
    answers = {}
    for given in _given(row):
        answer = _answer(given.get("value"))
        if answer is not None and given.get("status") in (None, "submitted"):
            answers[str(given.get("user_id"))] = answer
    return ArgillaPair(fields["prompt"], (fields["response1"], fields["response2"]), answers)


def _fields(row: Row) -> Row:
    """Return the fields by one spelling: `response-1` and `response_1` are response1, an instruction is a prompt."""
    fields = row["fields"] if isinstance(row.get("fields"), dict) else row
    found = {re.sub(r"^response[-_ ]?(\d)$", r"response\1", str(name)): value for name, value in fields.items()}
    for name in ("instruction", "request"):
        if "prompt" not in found and name in found:
            found["prompt"] = found[name]
    return found


def _given(row: Row) -> list[Row]:
    responses = row.get("responses")
    given = responses.get(QUESTION) if isinstance(responses, dict) else row.get(QUESTION)
    return [one for one in given or [] if isinstance(one, dict)]


def _answer(value: Any) -> Answer | None:
    """Read a label, a ranking with ranks, or a ranking as a list with the best first."""
    if isinstance(value, str):
        choice = LABELS.get(_label(value))
        return None if choice is None else {"choice": choice}
    ranks = _ranks(value)
    if set(ranks) != {"response1", "response2"}:
        return None
    first, second = ranks["response1"], ranks["response2"]
    return {"choice": "tie" if first == second else int(second < first)}


def _label(value: str) -> str:
    return re.sub(r"^response[-_ ]?(\d)$", r"response\1", value)


def _ranks(value: Any) -> dict[str, int]:
    if isinstance(value, dict) and isinstance(value.get("value"), list) and isinstance(value.get("rank"), list):
        return {_label(str(name)): rank for name, rank in zip(value["value"], value["rank"], strict=False)}
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return {_label(str(one.get("value"))): one.get("rank", place) for place, one in enumerate(value)}
    if isinstance(value, list):
        return {_label(str(name)): place for place, name in enumerate(value)}
    return {}


def argilla_records(records: Sequence[Record]) -> list[Row]:
    """Make a record of every judged pair of text."""
    return [
        _record(record) for record in records if record.kind == "pair" and record.votes and None not in record.responses
    ]


def _record(record: Record) -> Row:
    return {
        "id": str(record.id),
        "fields": {
            "prompt": _plain(record.prompt),
            "response1": text_of(record.responses[0]),
            "response2": text_of(record.responses[1]),
        },
        "metadata": {
            "round": record.round,
            **{f"model{i + 1}": model for i, model in enumerate(record.models) if model is not None},
            "annotators": [judged.pseudonym for judged in record.votes],
        },
        "suggestions": {},
        "responses": {
            QUESTION: [
                {
                    "value": NAMES[judged.answer["choice"]],
                    "user_id": str(uuid.uuid5(NAMESPACE, judged.pseudonym)),
                }
                for judged in record.votes
            ]
        },
        "vectors": {},
    }


def _plain(prompt: Content) -> str:
    """Return a conversation in the form that a data module reads back as one."""
    if isinstance(prompt, str):
        return prompt
    names = {"user": "Human", "assistant": "Assistant"}
    if all(turn["role"] in names for turn in prompt):
        return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in prompt)
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)

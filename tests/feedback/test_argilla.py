"""Argilla's pairwise form: both shapes that its versions export, and the way back."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from feedback_items import pair

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.agreement import overview
from rlhf_lightning.feedback.argilla import argilla_records, read_pair
from rlhf_lightning.feedback.ask import ask_argilla
from rlhf_lightning.feedback.candidates import ItemTemplate
from rlhf_lightning.feedback.export import export
from rlhf_lightning.feedback.records import read_records
from rlhf_lightning.feedback.store import Store

FORM = ItemTemplate("pair", 1, ())
FIELDS = {"prompt": "2+2?", "response1": "4", "response2": "5"}


def second(value: Any, **more: Any) -> dict[str, Any]:
    """A record of Argilla 2, as `Record.to_dict` makes it."""
    responses = {"preference": [{"value": value, "user_id": "u1", **more}]}
    return {"id": "x", "fields": FIELDS, "metadata": {}, "suggestions": {}, "responses": responses, "vectors": {}}


def first(value: Any, **more: Any) -> dict[str, Any]:
    """A row of a data set that Argilla 1 pushed to the hub."""
    return {
        **FIELDS,
        "preference": [{"user_id": "u1", "value": value, "status": "submitted", **more}],
        "metadata": "{}",
    }


@pytest.mark.parametrize(
    ("row", "choice"),
    [
        (second("response1"), 0),
        (second("response-2"), 1),
        (second("tie"), "tie"),
        (second("both_bad"), "bad"),
        (second(["response2", "response1"]), 1),
        (second([{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]), "tie"),
        (first({"rank": [2, 1], "value": ["response1", "response2"]}), 1),
        (first({"rank": [1, 1], "value": ["response1", "response2"]}), "tie"),
        (first({"rank": [1, 2], "value": ["response1", "response2"]}, status="discarded"), None),
        (second("response1", status="draft"), None),
        (second("something else"), None),
        ({"fields": FIELDS}, None),
    ],
)
def test_what_a_user_said(row: dict[str, Any], choice: Any) -> None:
    found = read_pair(row)
    assert (found.prompt, found.responses) == ("2+2?", ("4", "5"))
    assert found.answers == ({} if choice is None else {"u1": {"choice": choice}})


def test_pairs_and_judgements_are_imported_once(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "argilla.json"
    rows = [second("response1"), {**second("response2"), "fields": {**FIELDS, "prompt": "3+1?"}}]
    rows[1]["responses"]["preference"].append({"value": "response1", "user_id": "u2"})
    file.write_text(json.dumps(rows))
    added = ask_argilla(store, str(file), FORM)
    assert str(added) == "Argilla pairs: 2 new, 0 in the store already; 3 judgements imported"
    assert str(ask_argilla(store, str(file), FORM)).endswith("0 new, 2 in the store already; 0 judgements imported")
    assert [(row["prompt"], row["chosen"]) for row in export(store, "pairs").rows] == [("2+2?", "4")]
    assert [person.judgements for person in overview(store).annotators] == [2, 1]
    assert store.disputed() == [(2, 2)]
    with store.database.read() as connection:
        assert [row["wanted"] for row in connection.execute("SELECT wanted FROM items")] == [1, 2]  # as the file has


def test_what_is_exported_is_read_back(
    store: Store, tmp_path: Path, judge: Callable[..., int], person: Callable[..., int]
) -> None:
    store.add([pair(i) for i in range(4)])
    ada = person("Ada")
    for choice in (0, 1, "tie", "bad"):
        judge(ada, choice=choice)
    with store.database.read() as connection:
        records = argilla_records(read_records(connection))
    uuid.UUID(records[0]["responses"]["preference"][0]["user_id"])
    file = tmp_path / "records.json"
    file.write_text(json.dumps(records))
    with Store(tmp_path / "other.db", create=True) as other:
        ask_argilla(other, str(file), FORM)
        assert [entry.answer["choice"] for i in range(4) for entry in other.judgements_of(i + 1)] == [
            0,
            1,
            "tie",
            "bad",
        ]


def test_another_form_is_refused_by_its_row(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: no Argilla pair: .* found prompt, chosen, rejected"):
        ask_argilla(store, str(file), FORM)
    file.write_text(json.dumps({**FIELDS, "response2": "4"}) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: two responses are the same"):
        ask_argilla(store, str(file), FORM)

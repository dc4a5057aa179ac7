"""Answers have the form that their item asks for, and settings their ranges."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.answers import InvalidAnswerError, checked, correct
from rlhf_lightning.feedback.settings import Settings
from rlhf_lightning.feedback.store import Store

KIND = ("helpful", "honest")


@pytest.mark.parametrize(
    ("kind", "answer", "kept"),
    [
        ("pair", {"choice": 1, "strength": 3, "other": "x"}, {"choice": 1, "strength": 3}),
        ("pair", {"choice": "bad", "strength": None, "comment": ""}, {"choice": "bad"}),
        ("pair", {"skip": True, "choice": 7, "comment": "why"}, {"skip": True, "comment": "why"}),
        ("ranking", {"ranks": [2, 2, 3]}, {"ranks": [1, 1, 2]}),  # dense, from 1
        ("rating", {"scores": [{"honest": 7, "helpful": 1}] * 3}, {"scores": [{"helpful": 1, "honest": 7}] * 3}),
        (
            "edit",
            {"edits": [{"response": 0, "text": "a"}, {"response": 0, "text": "b"}]},
            {"edits": [{"response": 0, "text": "b"}]},
        ),
        (
            "pair",
            {"choice": 0, "reasons": ["safer", "safer"], "edits": [{"response": 2, "text": "b", "x": 1}]},
            {"choice": 0, "reasons": ["safer"], "edits": [{"response": 2, "text": "b"}]},
        ),
    ],
)
def test_known_fields_are_kept(kind: str, answer: dict[str, Any], kept: dict[str, Any]) -> None:
    assert checked(answer, kind, 3, KIND, reasons=["safer"]) == kept


@pytest.mark.parametrize(
    ("kind", "answer", "said"),
    [
        ("pair", [], "an answer is an object, found list"),
        ("pair", {}, "choice is None; it must be 0, 1, 'tie' or 'bad'"),
        ("pair", {"choice": True}, "choice is True"),
        ("pair", {"choice": "0; DROP TABLE judgements"}, "choice is '0; DROP TABLE judgements'"),
        ("pair", {"choice": 0, "strength": 4}, "strength is 4; it must be 1, 2, 3 or null"),
        ("pair", {"choice": 0, "reasons": ["shinier"]}, "reason 'shinier' is none of this store's reasons"),
        ("pair", {"choice": 0, "reasons": "safer"}, "reasons must be a list of texts"),
        ("pair", {"choice": 0, "comment": "x" * 10_001}, "comment must be a text of at most 10000 characters"),
        ("ranking", {"ranks": [1, 2]}, "ranks must be 3 whole numbers from 1 to 3"),
        ("ranking", {"ranks": [1, 2, 4]}, "ranks must be 3 whole numbers from 1 to 3"),
        ("rating", {"scores": [{"helpful": 1, "honest": 2}]}, "scores must be a list of 3 objects"),
        ("rating", {"scores": [{"helpful": 1}] * 3}, "scores need a number for each of helpful, honest"),
        ("rating", {"scores": [{"helpful": 8, "honest": 1}] * 3}, "score of helpful is 8; it must be from 1 to 7"),
        ("edit", {}, "edits is empty; change a response, or skip the item"),
        ("edit", {"edits": [{"response": 3, "text": "x"}]}, "an edit names response 3; there are 0 to 2"),
        ("edit", {"edits": [{"response": 0, "text": "  "}]}, "an edit must be a text of 1 to 200000 characters"),
    ],
)
def test_other_answers_are_refused(kind: str, answer: Any, said: str) -> None:
    with pytest.raises(InvalidAnswerError, match=said.replace("(", r"\(")):
        checked(answer, kind, 3, KIND, reasons=["safer"])


@pytest.mark.parametrize(
    ("kind", "answer", "known", "right"),
    [
        ("pair", {"choice": 0}, {"choice": 0}, True),
        ("pair", {"choice": "tie"}, {"choice": 0}, False),
        ("ranking", {"ranks": [1, 2]}, {"ranks": [1, 2]}, True),
        ("rating", {"scores": [{"a": 4}]}, {"scores": [{"a": 6}]}, False),
        ("pair", {"skip": True}, {"choice": 0}, None),
        ("pair", {"choice": 0}, None, None),
    ],
)
def test_an_answer_is_compared_with_the_known_one(kind: str, answer: Any, known: Any, right: bool | None) -> None:
    assert correct(kind, answer, known) is right


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"judgements_per_item": 0}, "judgements per item is 0; set it to at least 1"),
        ({"gold_share": 1.0}, "gold share is 1.0; set it to at least 0 and below 1"),
        ({"minimum_seconds": float("nan")}, "minimum seconds is nan"),
        ({"minimum_seconds": 60.0, "lease_seconds": 90.0}, "lease seconds is 90.0"),
        ({"criteria": ("a", "a")}, "criteria are a, a; give each a name of its own"),
    ],
)
def test_settings_out_of_range_are_refused_and_change_nothing(store: Store, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        store.update_settings(**values)
    assert store.settings == Settings()


def test_settings_are_kept(store: Store) -> None:
    store.update_settings(reasons=("one", "two"), strength=True)
    with Store(store.database.path) as again:
        assert again.settings == Settings(reasons=("one", "two"), strength=True)

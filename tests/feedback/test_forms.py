"""A form names replies by position, an answer names them by index; both say the same under every order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.datastructures import FormData

from rlhf_lightning.feedback.forms import LONGEST_COMMENT, FormError, describe, fields, parse
from rlhf_lightning.feedback.items import Item, Response
from rlhf_lightning.feedback.settings import Settings

ANSWERS = {
    "pair": [
        {"choice": 0},
        {"choice": 1, "reasons": ["clearer", "safer"]},
        {"choice": "tie", "comment": "same"},
        {"choice": "bad"},
    ],
    "ranking": [{"ranks": [2, 1, 3]}, {"ranks": [1, 1, 2], "edits": [{"response": 2, "text": "new"}]}],
    "rating": [{"scores": [{"helpful": 1, "honest": 7}, {"helpful": 2, "honest": 6}, {"helpful": 3, "honest": 5}]}],
    "edit": [{"edits": [{"response": 0, "text": "first\n\nsecond"}, {"response": 2, "text": "third"}]}],
}
CASES = [(kind, answer) for kind, answers in ANSWERS.items() for answer in [*answers, {"skip": True}]]


def item(kind: str) -> Item:
    count = 2 if kind == "pair" else 3
    responses = tuple(Response(f"reply {number}", False) for number in range(count))
    return Item(1, kind, (), responses, ("helpful", "honest") if kind == "rating" else ())


def sent(filled: dict[str, Any]) -> FormData:
    return FormData(
        [(name, text) for name, value in filled.items() for text in (value if isinstance(value, list) else [value])]
    )


@pytest.mark.parametrize(("kind", "answer"), CASES)
def test_a_form_filled_from_an_answer_gives_the_answer(kind: str, answer: dict[str, Any]) -> None:
    asked = item(kind)
    for order in itertools.permutations(range(len(asked.responses))):
        assert parse(asked, order, Settings(), sent(fields(asked, order, answer))) == answer


def test_the_choice_is_by_position() -> None:
    first = sent({"choice": "1"})
    assert parse(item("pair"), (0, 1), Settings(), first) == {"choice": 0}
    assert parse(item("pair"), (1, 0), Settings(), first) == {"choice": 1}
    assert describe(item("pair"), (1, 0), {"choice": 0}) == "Reply 2 is better"


def test_strength_is_asked_where_the_settings_say_so() -> None:
    strong = Settings(strength=True)
    assert parse(item("pair"), (0, 1), strong, sent({"choice": "2", "strength": "3"})) == {"choice": 1, "strength": 3}
    assert parse(item("pair"), (0, 1), strong, sent({"choice": "tie", "strength": "3"})) == {"choice": "tie"}
    assert parse(item("pair"), (0, 1), Settings(), sent({"choice": "2", "strength": "3"})) == {"choice": 1}
    with pytest.raises(FormError, match="how much better"):
        parse(item("pair"), (0, 1), strong, sent({"choice": "2"}))


def test_an_unchanged_reply_is_no_edit_whatever_the_line_ends() -> None:
    asked = Item(1, "pair", (), (Response("one\ntwo", False), Response("x", False)), ())
    form = {"choice": "1", "edit_1": "one\r\ntwo\r\n", "edit_2": ""}
    assert parse(asked, (0, 1), Settings(), sent(form)) == {"choice": 0}
    assert parse(asked, (0, 1), Settings(), sent(form | {"edit_2": "y"}))["edits"] == [{"response": 1, "text": "y"}]


@pytest.mark.parametrize(
    ("kind", "form", "message"),
    [
        ("pair", {}, "which reply is better"),
        ("pair", {"choice": "3"}, "which reply is better"),
        ("ranking", {"rank_1": "1", "rank_2": "2"}, "reply 3 a rank"),
        ("ranking", {"rank_1": "1", "rank_2": "2", "rank_3": "4"}, "reply 3 a rank"),
        ("rating", {"score_1_0": "8"}, "reply 1 on “helpful”"),
        ("edit", {"edit_1": "reply 0"}, "Change the reply"),
        ("pair", {"choice": "1", "comment": "x" * (LONGEST_COMMENT + 1)}, "comment has 10,001"),
    ],
)
def test_the_message_names_what_is_missing(kind: str, form: dict[str, str], message: str) -> None:
    asked = item(kind)
    with pytest.raises(FormError, match=message):
        parse(asked, tuple(range(len(asked.responses))), Settings(), sent(form))


def test_reasons_that_the_page_does_not_offer_are_dropped() -> None:
    form = sent({"choice": "1", "reason": ["clearer", "made up", "clearer"]})
    assert parse(item("pair"), (0, 1), Settings(), form)["reasons"] == ["clearer"]

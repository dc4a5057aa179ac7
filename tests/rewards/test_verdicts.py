"""What is read from the texts of judges, and what is not."""

from __future__ import annotations

import pytest

from rlhf_lightning.rewards.verdicts import LONGEST, read_choice, read_rating


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: [[7]]", 7),
        ("It is fine.\n\nRating: 7", 7),
        ("**Rating:** 6.5", 6.5),
        ("Overall score: 8/10", 8),
        ("The score is **4**.", 4),
        ("I would say 3 out of 10", 3),
        ("5", 5),
        (" **9** ", 9),
        ('{"explanation": "ok", "rating": 2}', 2),
        ('```json\n{"Score": "8"}\n```', 8),
        ("<think>maybe [[2]], or Rating: 3</think>\nRating: [[9]]", 9),
        ("3 errors. 2 of them are grave.\nRating: [[4]]", 4),
        ("Rating: [[10]] - I stay with a rating of 10.", 10),
    ],
)
def test_ratings(text: str, expected: float) -> None:
    assert read_rating(text, 1, 10) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "I'm sorry, but I can't help with that.",
        "Rating: [[0]]",
        "Rating: [[11]]",
        "Rating: [[-3]]",
        "Rating: [[3]] no, Rating: [[4]]",
        "There are 3 mistakes and 2 typos.",
        "<think>Rating: [[9]]",
        "[[A]]",
        '{"rating": true}',
        '{"rating": null}',
        '{"rating": [7]}',
        "{" * 5000,
        "nan",
        "inf",
    ],
)
def test_no_rating_is_none_and_never_zero(text: str | None) -> None:
    assert read_rating(text, 1, 10) is None


def test_zero_is_a_rating_where_the_scale_has_it() -> None:
    assert read_rating("Rating: [[0]]", 0, 1) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[A]]", 1),
        ("Both are good.\n[[B]]", 0),
        ("[[C]]", 0.5),
        ("[[tie]]", 0.5),
        ("Verdict: A", 1),
        ("**Winner:** Response B", 0),
        ("Response A is clearly better.", 1),
        ('{"winner": "A", "why": "short"}', 1),
        ('{"verdict": "tie"}', 0.5),
        ("B", 0),
        ("Tie.", 0.5),
        ("<think>[[A]]?</think>[[B]]", 0),
    ],
)
def test_choices(text: str, expected: float) -> None:
    assert read_choice(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "I cannot compare these.",
        "[[A]] [[B]]",
        "[[D]]",
        "The better is a matter of taste.",
        "A good reply names its source.",
        '{"winner": 1}',
    ],
)
def test_no_choice_is_none(text: str | None) -> None:
    assert read_choice(text) is None


def test_a_text_without_end_is_read_at_its_end() -> None:
    assert read_choice("[[B]]" + "x" * LONGEST + "[[A]]") == 1

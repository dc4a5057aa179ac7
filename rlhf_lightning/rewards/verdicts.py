"""Verdicts in the text of a judge: a rating, or which of two responses is better."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

LONGEST = 20_000
"""Characters of a judge's text that are read, at its end."""
THOUGHT = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.IGNORECASE)
NUMBER = r"[-+]?\d+(?:\.\d+)?"
OF_SCALE = r"(?:\s*(?:/|out of)\s*\d+)?"
RATING_WORD = r"(?:overall |final )?(?:rating|score|grade|verdict)"
RATINGS = (
    re.compile(rf"\[\[\s*({NUMBER}){OF_SCALE}\s*\]\]"),
    re.compile(rf"\b{RATING_WORD}\b[\s*_`\"']*(?:is|of|:|=|-)?[\s*_`\"']*({NUMBER}){OF_SCALE}", re.IGNORECASE),
    re.compile(rf"(?<![\d.])({NUMBER})\s*(?:/|out of)\s*\d+"),
)
"""Forms of a rating, the clearest first; the first form that occurs decides."""
CHOICE_WORD = r"(?:final )?(?:verdict|winner|choice|better response|better|preferred|answer)"
SIDE = r"((?-i:[ABC])|tie|equal|neither|both)"
CHOICES = (
    re.compile(rf"\[\[\s*{SIDE}\s*\]\]", re.IGNORECASE),
    re.compile(
        rf"\b{CHOICE_WORD}\b[\s*_`\"']*(?:is|:|=|-)[\s*_`\"']*(?:response |assistant |a )?[\s*_`\"']*{SIDE}\b",
        re.IGNORECASE,
    ),
    re.compile(r"\b(?:response|assistant) (A|B) is (?:clearly |slightly |much )?(?:the )?better\b", re.IGNORECASE),
)
PROBABILITY = {"a": 1.0, "b": 0.0, "c": 0.5, "tie": 0.5, "equal": 0.5, "both": 0.5, "neither": 0.5}
KEYS_OF_RATING = ("rating", "score", "grade", "verdict")
KEYS_OF_CHOICE = ("winner", "verdict", "choice", "preferred", "better", "answer")


def read_rating(text: str | None, low: float, high: float) -> float | None:
    """Find the rating in the text of a judge.

    Read are a JSON object with a key such as `rating`, `[[7]]`, `Rating: 7`, `7/10`, and a text that is one number. Text in
    `<think>` is not read.

    Returns:
        The rating; None where the text has none, contradicts itself, or leaves the scale.

    >>> read_rating("Clear and correct.\\nRating: [[7]]", 1, 10), read_rating("**Score:** 6.5/10", 1, 10)
    (7.0, 6.5)
    >>> read_rating("I cannot help with that.", 1, 10), read_rating("[[11]]", 1, 10), read_rating("[[3]] or [[4]]", 1, 10)
    (None, None, None)
    """
    text = _said(text)
    value = _json_value(text, KEYS_OF_RATING)
    if value is None:
        value = _agreed(text, RATINGS) or text.strip(" \n\t*_`.\"'")
    try:
        rating = float(value)
    except (TypeError, ValueError):
        return None
    return rating if low <= rating <= high else None


def read_choice(text: str | None) -> float | None:
    """Find which response a judge prefers: 1 for the first (A), 0 for the second (B), 0.5 for a tie.

    Returns:
        The probability that the first is better; None where the text has no verdict, or contradicts itself.

    >>> read_choice("B is vague.\\n[[A]]"), read_choice('{"winner": "B"}'), read_choice("Verdict: tie")
    (1.0, 0.0, 0.5)
    >>> read_choice("A"), read_choice("As an AI I prefer neither."), read_choice("[[A]] or [[B]]")
    (1.0, None, None)
    """
    text = _said(text)
    value = _json_value(text, KEYS_OF_CHOICE)
    if value is None:
        value = _agreed(text, CHOICES) or text.strip(" \n\t*_`.\"'[]")
    return PROBABILITY.get(re.sub(r"^(response|assistant)\s+", "", str(value).strip().lower()))


def _said(text: str | None) -> str:
    """Return the text without the thoughts before it."""
    said = (text or "")[-LONGEST:]
    tags = list(THOUGHT.finditer(said))
    if not tags:
        return said.strip()
    return said[tags[-1].end() :].strip() if tags[-1].group(1) else ""


def _agreed(text: str, forms: Sequence[re.Pattern[str]]) -> str | None:
    """Return the verdict of the first form that occurs; an empty text where its places differ."""
    for form in forms:
        found = {_canonical(match.group(1)) for match in form.finditer(text)}
        if found:
            return found.pop() if len(found) == 1 else "?"
    return None


def _canonical(verdict: str) -> str:
    try:
        return str(float(verdict))
    except ValueError:
        return {"tie": "c", "equal": "c", "both": "c", "neither": "c"}.get(verdict.lower(), verdict.lower())


def _json_value(text: str, keys: Sequence[str]) -> Any:
    """Return the value of the first of some keys in the last JSON object of the text; None without one."""
    decoder, found = json.JSONDecoder(), None
    for place in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        named = {str(name).lower(): each for name, each in value.items()}
        values = [named[key] for key in keys if isinstance(named.get(key), str | int | float)]
        found = next((each for each in values if not isinstance(each, bool)), found)
    return found

"""Translate between the fields of a form, which name replies by position, and an answer, which names them by index.

A form's fields: `skip`, `choice` (1, 2, tie, bad), `strength`, `rank_P`, `score_P_C`, `edit_P`, `reason` (repeated),
`comment`; P is the position on the page from 1, C the criterion's number from 0. The order of the lease says which
response is at which position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import FormData

from rlhf_lightning.feedback.answers import HIGHEST, LONGEST_COMMENT, LONGEST_EDIT, LOWEST, Answer
from rlhf_lightning.feedback.items import Item
from rlhf_lightning.feedback.settings import Settings

STRENGTHS = ("slightly", "clearly", "much")
SCALE = range(LOWEST, HIGHEST + 1)


class FormError(ValueError):
    """Say which field of a form lacks what."""


def parse(item: Item, order: Sequence[int], settings: Settings, form: FormData) -> Answer:
    """Read an answer from a form.

    Args:
        item: The item that the form judges.
        order: The index of the response at each position.
        settings: The store's settings: the reasons that may be named, and whether strength is asked for.
        form: The fields that the browser sent.

    Raises:
        FormError: A field is missing, or holds something that the page does not offer.
    """
    if _text(form, "skip"):
        answer: Answer = {"skip": True}
    else:
        answer = _PARSERS[item.kind](item, order, settings, form)
        edits = _edits(item, order, form)
        if item.kind == "edit" and not edits:
            raise FormError("Change the reply before you save it, or skip the item.")
        if edits:
            answer["edits"] = edits
    reasons = [reason for reason in dict.fromkeys(form.getlist("reason")) if reason in settings.reasons]
    comment = _text(form, "comment").strip()
    if len(comment) > LONGEST_COMMENT:
        raise FormError(f"The comment has {len(comment):,} characters; at most {LONGEST_COMMENT:,} can be saved.")
    return answer | ({"reasons": reasons} if reasons else {}) | ({"comment": comment} if comment else {})


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise FormError(f"{name} is a file; the page sends text.")
    return value.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _number(form: FormData, name: str, allowed: Sequence[int], missing: str) -> int:
    text = _text(form, name)
    if text not in {str(number) for number in allowed}:
        raise FormError(missing)
    return int(text)


def _pair(item: Item, order: Sequence[int], settings: Settings, form: FormData) -> Answer:
    choice = _text(form, "choice")
    if choice in ("tie", "bad"):
        return {"choice": choice}
    if choice not in ("1", "2"):
        raise FormError("Choose which reply is better, a tie, or both bad.")
    answer = {"choice": order[int(choice) - 1]}
    if settings.strength:
        answer["strength"] = _number(form, "strength", (1, 2, 3), "Choose how much better the reply is.")
    return answer


def _ranking(item: Item, order: Sequence[int], settings: Settings, form: FormData) -> Answer:
    places = range(1, len(order) + 1)
    ranks = [0] * len(order)
    for position, response in enumerate(order, 1):
        ranks[response] = _number(form, f"rank_{position}", places, f"Give reply {position} a rank.")
    return {"ranks": ranks}


def _rating(item: Item, order: Sequence[int], settings: Settings, form: FormData) -> Answer:
    scores: list[dict[str, int]] = [{} for _ in order]
    for position, response in enumerate(order, 1):
        for number, criterion in enumerate(item.criteria):
            missing = f"Rate reply {position} on “{criterion}”."
            scores[response][criterion] = _number(form, f"score_{position}_{number}", SCALE, missing)
    return {"scores": scores}


def _edit(item: Item, order: Sequence[int], settings: Settings, form: FormData) -> Answer:
    return {}


_PARSERS: dict[str, Callable[[Item, Sequence[int], Settings, FormData], Answer]] = {
    "pair": _pair,
    "ranking": _ranking,
    "rating": _rating,
    "edit": _edit,
}


def _edits(item: Item, order: Sequence[int], form: FormData) -> list[dict[str, Any]]:
    edits = []
    for position, response in enumerate(order, 1):
        text = _text(form, f"edit_{position}")
        original = item.responses[response].text.replace("\r\n", "\n")
        if not text.strip() or text.strip() == original.strip():
            continue
        if len(text) > LONGEST_EDIT:
            raise FormError(
                f"The improved reply {position} has {len(text):,} characters; at most {LONGEST_EDIT:,} can be saved."
            )
        edits.append({"response": response, "text": text})
    return sorted(edits, key=lambda edit: int(edit["response"]))


def fields(item: Item, order: Sequence[int], answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a form that say the same as an answer; `parse` is the inverse.

    Returns:
        Field names to text, and `reason` to a list; empty without an answer.
    """
    if answer is None:
        return {}
    position = {response: str(place) for place, response in enumerate(order, 1)}
    filled: dict[str, Any] = {"reason": list(answer.get("reasons", [])), "comment": answer.get("comment", "")}
    if answer.get("skip"):
        filled["skip"] = "1"
    elif "choice" in answer:
        choice = answer["choice"]
        filled["choice"] = choice if choice in ("tie", "bad") else position[choice]
        filled["strength"] = str(answer.get("strength") or "")
    for response, rank in enumerate(answer.get("ranks", [])):
        filled[f"rank_{position[response]}"] = str(rank)
    for response, scores in enumerate(answer.get("scores", [])):
        for number, criterion in enumerate(item.criteria):
            filled[f"score_{position[response]}_{number}"] = str(scores.get(criterion, ""))
    for edit in answer.get("edits", []):
        filled[f"edit_{position[edit['response']]}"] = edit["text"]
    return filled


def sent_fields(form: FormData) -> dict[str, Any]:
    """Return the fields as sent, to show a refused form again with nothing lost."""
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    return texts | {"reason": [value for value in form.getlist("reason") if isinstance(value, str)]}


def describe(order: Sequence[int], answer: Mapping[str, Any] | None) -> str:
    """Say in words what an answer chose, by the positions on the page.

    >>> describe((1, 0), {"choice": 0, "strength": 2})
    'Reply 2 is clearly better'
    """
    if answer is None:
        return "not answered"
    position = {response: place for place, response in enumerate(order, 1)}
    if answer.get("skip"):
        return "Skipped"
    if "choice" in answer:
        named = {"tie": "Equally good", "bad": "Both bad"}
        strength = f"{STRENGTHS[answer['strength'] - 1]} " if answer.get("strength") else ""
        return named.get(answer["choice"]) or f"Reply {position[answer['choice']]} is {strength}better"
    if "ranks" in answer:
        ranked = sorted((rank, position[response]) for response, rank in enumerate(answer["ranks"]))
        return "Best to worst: " + ", ".join(f"reply {place} (rank {rank})" for rank, place in ranked)
    if "scores" in answer:
        rows = sorted((position[response], scores) for response, scores in enumerate(answer["scores"]))
        return "; ".join(
            f"reply {place}: " + ", ".join(f"{k} {v}" for k, v in scores.items()) for place, scores in rows
        )
    return "Improved reply " + ", ".join(str(position[edit["response"]]) for edit in answer.get("edits", []))

"""Answers of annotators: their form, and how two of them compare.

An answer is a JSON object. It names responses by their index in the item, never by the position at which they were shown:

    pair     {"choice": 0 | 1 | "tie" | "bad", "strength": 1 | 2 | 3 | null}
    ranking  {"ranks": [1, 3, 2]}              the rank of each response; 1 is best, equal ranks are a tie
    rating   {"scores": [{"helpful": 5}]}      from 1 to 7, for each response and criterion
    edit     {"edits": [{"response": 0, "text": "…"}]}
    any      {"skip": true}

Each may have `reasons` (a list of the settings' reasons) and a `comment`; a pair, ranking or rating may have `edits` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.errors import UserError

KINDS = ("pair", "ranking", "rating", "edit")
LOWEST, HIGHEST = 1, 7
"""Of the scale of a rating."""
TOLERANCE = 1
"""Points by which two ratings of one response may differ and still agree."""
MOST_RANKED = 5
"""Responses of a ranking: a person orders no more of them reliably."""
LONGEST_COMMENT, LONGEST_EDIT = 10_000, 200_000

Answer = dict[str, Any]


class InvalidAnswerError(UserError):
    """A form's answer has not the form that its item asks for."""


def checked(
    answer: Any, kind: str, responses: int, criteria: Sequence[str], reasons: Sequence[str] | None = None
) -> Answer:
    """Return the answer with known fields alone.

    Args:
        answer: what a form, or a file of known answers, gave.
        kind: of the item. responses: how many it has. criteria: of a rating.
        reasons: those that there are; None takes any.

    Raises:
        InvalidAnswerError: a field is missing, unknown or out of its range.
    """
    if not isinstance(answer, dict):
        raise InvalidAnswerError(f"an answer is an object, found {type(answer).__name__}")
    found: Answer = _extras(answer, reasons)
    if answer.get("skip") is True:
        return {"skip": True, **found}
    if kind == "pair":
        found |= _choice(answer)
    elif kind == "ranking":
        found |= {"ranks": _ranks(answer.get("ranks"), responses)}
    elif kind == "rating":
        found |= {"scores": _scores(answer.get("scores"), responses, criteria)}
    edits = _edits(answer.get("edits", []), responses)
    if kind == "edit" and not edits:
        raise InvalidAnswerError("edits is empty; change a response, or skip the item")
    return {**found, "edits": edits} if edits else found


def _extras(answer: Answer, reasons: Sequence[str] | None) -> Answer:
    given, comment = answer.get("reasons") or [], answer.get("comment") or ""
    if not isinstance(given, list) or not all(isinstance(reason, str) for reason in given):
        raise InvalidAnswerError("reasons must be a list of texts")
    unknown = [reason for reason in given if reasons is not None and reason not in reasons]
    if unknown:
        raise InvalidAnswerError(f"reason {unknown[0]!r:.60} is none of this store's reasons")
    if not isinstance(comment, str) or len(comment) > LONGEST_COMMENT:
        raise InvalidAnswerError(f"comment must be a text of at most {LONGEST_COMMENT} characters")
    return ({"reasons": list(dict.fromkeys(given))} if given else {}) | ({"comment": comment} if comment else {})


def _choice(answer: Answer) -> Answer:
    choice, strength = answer.get("choice"), answer.get("strength")
    if not (_whole(choice, 0, 1) or choice in ("tie", "bad")):
        raise InvalidAnswerError(f"choice is {choice!r:.60}; it must be 0, 1, 'tie' or 'bad'")
    if strength is not None and not _whole(strength, 1, 3):
        raise InvalidAnswerError(f"strength is {strength!r:.60}; it must be 1, 2, 3 or null")
    return {"choice": choice} if strength is None else {"choice": choice, "strength": strength}


def _ranks(ranks: Any, responses: int) -> list[int]:
    if not isinstance(ranks, list) or len(ranks) != responses or not all(_whole(r, 1, responses) for r in ranks):
        raise InvalidAnswerError(f"ranks must be {responses} whole numbers from 1 to {responses}, found {ranks!r:.60}")
    levels = sorted(set(ranks))
    return [1 + levels.index(rank) for rank in ranks]


def _scores(scores: Any, responses: int, criteria: Sequence[str]) -> list[dict[str, int]]:
    if not isinstance(scores, list) or len(scores) != responses:
        raise InvalidAnswerError(f"scores must be a list of {responses} objects, one for each response")
    for given in scores:
        if not isinstance(given, dict) or set(given) != set(criteria):
            raise InvalidAnswerError(f"scores need a number for each of {', '.join(criteria)}, found {given!r:.60}")
        for name, score in given.items():
            if not _whole(score, LOWEST, HIGHEST):
                raise InvalidAnswerError(f"score of {name} is {score!r:.60}; it must be from {LOWEST} to {HIGHEST}")
    return [{name: given[name] for name in criteria} for given in scores]


def _edits(edits: Any, responses: int) -> list[dict[str, Any]]:
    if not isinstance(edits, list):
        raise InvalidAnswerError("edits must be a list")
    found: dict[int, dict[str, Any]] = {}
    for edit in edits:
        index, text = (edit.get("response"), edit.get("text")) if isinstance(edit, dict) else (None, None)
        if not isinstance(index, int) or not _whole(index, 0, responses - 1):
            raise InvalidAnswerError(f"an edit names response {index!r:.60}; there are 0 to {responses - 1}")
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_EDIT:
            raise InvalidAnswerError(f"an edit must be a text of 1 to {LONGEST_EDIT} characters")
        found[index] = {"response": index, "text": text}
    return list(found.values())


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def agree(kind: str, answers: Sequence[Answer]) -> bool:
    """Whether all answers say the same: one choice, one order, ratings within one point; edits never disagree.

    >>> agree("pair", [{"choice": 0, "strength": 3}, {"choice": 0}])
    True
    >>> agree("ranking", [{"ranks": [1, 2]}, {"ranks": [1, 1]}])
    False
    >>> agree("rating", [{"scores": [{"helpful": 5}]}, {"scores": [{"helpful": 6}]}])
    True
    """
    if kind == "pair":
        return len({str(answer["choice"]) for answer in answers}) <= 1
    if kind == "ranking":
        return len({tuple(answer["ranks"]) for answer in answers}) <= 1
    if kind == "rating":
        return all(max(scores) - min(scores) <= TOLERANCE for scores in _by_criterion(answers))
    return True


def _by_criterion(answers: Sequence[Answer]) -> list[list[int]]:
    flat = [[score for given in answer["scores"] for score in given.values()] for answer in answers]
    return [list(scores) for scores in zip(*flat, strict=True)]


def correct(kind: str, answer: Answer, known: Answer | None) -> bool | None:
    """Whether an answer agrees with the known one; None for a skip, an edit, or where no answer is known."""
    if known is None or kind == "edit" or answer.get("skip"):
        return None
    return agree(kind, [answer, known])

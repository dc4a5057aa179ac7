"""Reconcile annotators: one probability for each judged pair, and how reliable each annotator is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import Record
from rlhf_lightning.functional.annotators import dawid_skene, majority, reconciled_by_strengths
from rlhf_lightning.functional.votes import FIRST, SECOND, TIE, Votes

METHODS = {"majority": majority, "dawid-skene": dawid_skene, "bradley-terry": reconciled_by_strengths}
"""Name on the command line: a function of `functional.annotators`."""
CHOICES = {0: FIRST, 1: SECOND, "tie": TIE, "bad": TIE}


@dataclass(frozen=True)
class Reconciliation:
    """What annotators said together."""

    pairs: dict[int, tuple[float, float]]
    """Item: the probability that its first response is the better one, and the standard deviation of that number."""
    reliabilities: dict[str, float]
    """Pseudonym: the probability of a right choice (`dawid-skene`), or 1 for a usual annotator and 0 for one who guesses
    (`bradley-terry`); empty for `majority`."""


def reconcile(records: Sequence[Record], method: str) -> Reconciliation:
    """Reconcile the votes on all pairs of `records`; gold and training items tell `dawid-skene` how annotators err.

    An adjudicated pair has the adjudicator's probability alone, and the annotators' votes on it count for their reliability.

    Raises:
        UserError: there is no such method.
    """
    if method not in METHODS:
        raise UserError(f"there is no way {method!r} to reconcile annotators; choose {', '.join(METHODS)}")
    judged = [record for record in records if record.kind == "pair" and record.votes]
    if not judged:
        return Reconciliation({}, {})
    pseudonyms = sorted({judgement.pseudonym for record in judged for judgement in record.votes})
    found = METHODS[method](_votes(judged, pseudonyms))
    numbers = zip(found.probabilities.tolist(), found.deviations.tolist(), strict=True)
    pairs = {record.id: number for record, number in zip(judged, numbers, strict=True)}
    pairs |= {
        record.id: (record.deciding[-1].first_better, 0.0) for record in judged if record.deciding != record.votes
    }
    reliabilities = [] if found.reliabilities is None else found.reliabilities.tolist()
    return Reconciliation(pairs, dict(zip(pseudonyms, reliabilities, strict=False)))


def _votes(records: Sequence[Record], pseudonyms: list[str]) -> Votes:
    """Number pairs in their order, annotators by pseudonym, and responses by prompt and content, which pairs may share."""
    contents: dict[str, int] = {}
    responses = [
        [contents.setdefault(json.dumps([record.prompt, content]), len(contents)) for content in record.responses]
        for record in records
    ]
    votes = [(pair, judged) for pair, record in enumerate(records) for judged in record.votes]
    return Votes(
        pairs=torch.tensor([pair for pair, _ in votes]),
        annotators=torch.tensor([pseudonyms.index(judged.pseudonym) for _, judged in votes]),
        choices=torch.tensor([CHOICES[judged.answer["choice"]] for _, judged in votes]),
        responses=torch.tensor(responses),
        swapped=torch.tensor([judged.order[0] == 1 for _, judged in votes]),
        known=torch.tensor([_known(record) for record in records]),
    )


def _known(record: Record) -> int:
    if record.purpose == "item" or record.answer is None:
        return -1
    return CHOICES[record.answer["choice"]]

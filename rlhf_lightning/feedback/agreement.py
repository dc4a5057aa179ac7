"""How far annotators agree, and how each of them judges: accuracy on gold items, pace, leanings."""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.answers import TOLERANCE, correct
from rlhf_lightning.feedback.items import text_of
from rlhf_lightning.feedback.records import Judged, Record, read_records
from rlhf_lightning.feedback.shares import Share, share
from rlhf_lightning.feedback.store import Store

Units = dict[tuple[int, ...], dict[int, float]]
"""What each annotator said of each unit: a pair, two responses of a ranking, or a response to rate."""


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree on one kind of judgement; None where nothing was judged twice, or all judgements are one value."""

    what: str
    """`pair`, `ranking`, or the criterion of a rating."""
    alpha: float | None
    """Krippendorff's α: nominal for pairs and rankings, ordinal for ratings. 1 is agreement, 0 what chance gives."""
    kappa: float | None
    """Cohen's κ, the mean over annotators two by two, weighted by what both judged; with squared weights for ratings."""
    percent: float | None
    """Percent of two judgements of one unit that agree; of ratings, within one point."""
    units: int
    """How many were judged by at least two annotators."""


@dataclass(frozen=True)
class AnnotatorRow:
    """How one annotator judges."""

    pseudonym: str
    name: str | None
    judgements: int = 0
    skips: int = 0
    gold_right: int = 0
    gold_total: int = 0
    training_right: int = 0
    training_total: int = 0
    seconds_median: float | None = None
    left: Share | None = None
    """How often the response on the left was chosen, among pairs with a better one."""
    longer: Share | None = None
    """How often the longer one was, among pairs of different lengths."""
    first_model: Share | None = None
    """How often that of the store's first model was, among its pairs with another model."""
    others: Share | None = None
    """How often the annotator chose as most of the others did, among pairs where most others chose one of the two."""
    reliability: float | None = None
    """On pairs, of the method that was asked for; see `annotators.Reconciliation`."""

    @property
    def left_share(self) -> float | None:
        """The share of `left` alone."""
        return self.left.share if self.left else None

    @property
    def longer_share(self) -> float | None:
        """The share of `longer` alone."""
        return self.longer.share if self.longer else None

    @property
    def first_model_share(self) -> float | None:
        """The share of `first_model` alone."""
        return self.first_model.share if self.first_model else None


@dataclass(frozen=True)
class Overview:
    """Progress and agreement of a store; `agreement` has one entry for each kind of judgement that there is."""

    items: int
    open: int
    settled: int
    disputed: int
    adjudicated: int
    judgements: int
    first_model: str | None
    recorded: Share | None = None
    """How often annotators chose as the file that a pair comes from, where they chose one of the two."""
    agreement: list[Agreement] = field(default_factory=list)
    annotators: list[AnnotatorRow] = field(default_factory=list)

    @property
    def alpha(self) -> float | None:
        """Of the first kind of judgement."""
        return self.agreement[0].alpha if self.agreement else None

    @property
    def kappa(self) -> float | None:
        """Of the first kind of judgement."""
        return self.agreement[0].kappa if self.agreement else None

    @property
    def percent(self) -> float | None:
        """Of the first kind of judgement."""
        return self.agreement[0].percent if self.agreement else None


def overview(store: Store, reconcile: str | None = None) -> Overview:
    """Measure the store as it is now; `reconcile`, a name of `annotators.METHODS`, adds how reliable each annotator is."""
    people = store.people()
    with store.database.snapshot() as connection:
        records = read_records(connection, ("item", "gold", "training"))
        skips = Counter(
            row["annotator"] for row in connection.execute("SELECT annotator FROM latest WHERE skipped = 1")
        )
    reliabilities = _reliabilities(records, reconcile)
    items = [record for record in records if record.purpose == "item"]
    states = Counter(record.state for record in items)
    first = next((model for record in items for model in record.models if model is not None), None)
    return Overview(
        items=len(items),
        open=states["open"],
        settled=states["settled"],
        disputed=states["disputed"],
        adjudicated=states["adjudicated"],
        judgements=sum(len(record.votes) for record in items),
        first_model=first,
        recorded=share([found for record in items for found in _as_recorded(record)]),
        agreement=agreements(items),
        annotators=[
            replace(
                _row(records, person.id, first, AnnotatorRow(person.pseudonym, person.name, skips=skips[person.id])),
                reliability=reliabilities.get(person.pseudonym),
            )
            for person in people
        ],
    )


def _reliabilities(records: Sequence[Record], method: str | None) -> dict[str, float]:
    if method is None:
        return {}
    from rlhf_lightning.feedback.annotators import reconcile

    return reconcile(records, method).reliabilities


def agreements(records: Sequence[Record]) -> list[Agreement]:
    """Measure agreement on pairs, rankings and each criterion of ratings."""
    criteria = dict.fromkeys(name for record in records if record.kind == "rating" for name in record.criteria)
    found = [
        _agreement("pair", _pairs(records), ordinal=False),
        _agreement("ranking", _rankings(records), ordinal=False),
        *(_agreement(name, _ratings(records, name), ordinal=True) for name in criteria),
    ]
    return [agreement for agreement in found if agreement is not None]


def _pairs(records: Iterable[Record]) -> Units:
    """1 and -1 for the responses, 0 for a tie, 2 for both bad.

    Which response is the first says nothing, and it is often the better one. Half of the pairs, chosen by a hash, count
    reversed, so that the agreement by chance does not depend on the order.
    """
    values = {"0": 1.0, "1": -1.0, "tie": 0.0, "bad": 2.0}

    def value(record: Record, judged: Judged) -> float:
        found = values[str(judged.answer["choice"])]
        return _orientation(record.id) * found if abs(found) == 1 else found

    return {(r.id,): {j.annotator: value(r, j) for j in r.votes} for r in records if r.kind == "pair"}


def _rankings(records: Iterable[Record]) -> Units:
    """For two responses of a ranking each: 1 where the first is better, -1 where the second is, 0 for equal ranks."""
    found: Units = {}
    for record in records:
        if record.kind != "ranking":
            continue
        for a, b in itertools.combinations(range(len(record.responses)), 2):
            found[record.id, a, b] = {
                j.annotator: _orientation(record.id, a, b) * _sign(j.answer["ranks"][b] - j.answer["ranks"][a])
                for j in record.votes
            }
    return found


def _ratings(records: Iterable[Record], criterion: str) -> Units:
    return {
        (record.id, index): {j.annotator: float(j.answer["scores"][index][criterion]) for j in record.votes}
        for record in records
        if record.kind == "rating" and criterion in record.criteria
        for index in range(len(record.responses))
    }


def _orientation(*unit: int) -> int:
    """Return 1 or -1, each for half of all units, whatever pattern their numbers have."""
    return 1 - 2 * (hashlib.sha256(repr(unit).encode()).digest()[0] & 1)


def _sign(value: float) -> float:
    return float((value > 0) - (value < 0))


def _agreement(what: str, units: Units, ordinal: bool) -> Agreement | None:
    if not units:
        return None
    twice = [said for said in units.values() if len(said) > 1]
    near = TOLERANCE if ordinal else 0
    two = [abs(a - b) <= near for said in twice for a, b in itertools.combinations(said.values(), 2)]
    return Agreement(
        what=what,
        alpha=krippendorff_alpha(twice, ordinal),
        kappa=mean_kappa(twice, (lambda a, b: (a - b) ** 2) if ordinal else (lambda a, b: float(a != b))),
        percent=100 * sum(two) / len(two) if two else None,
        units=len(twice),
    )


def krippendorff_alpha(units: Sequence[dict[int, float]], ordinal: bool) -> float | None:
    """Compute Krippendorff's α with the package `krippendorff`; None where there are not two values to tell apart.

    Raises:
        UserError: the package is not installed.
    """
    values = sorted({value for said in units for value in said.values()})
    if len(values) < 2:
        return None
    try:
        import krippendorff
        import numpy
    except ImportError as error:
        raise UserError("agreement needs krippendorff; pip install 'rlhf_lightning[feedback]'") from error
    counts = numpy.zeros((len(units), len(values)), dtype=int)
    for row, said in enumerate(units):
        for value in said.values():
            counts[row, values.index(value)] += 1
    level: Literal["ordinal", "nominal"] = "ordinal" if ordinal else "nominal"
    return float(krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=level))


def mean_kappa(units: Sequence[dict[int, float]], distance: Callable[[float, float], float]) -> float | None:
    """Compute the mean of Cohen's κ over all two annotators, weighted by how many units both judged."""
    both: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for said in units:
        for one, other in itertools.combinations(sorted(said), 2):
            both.setdefault((one, other), []).append((said[one], said[other]))
    found = [(kappa, len(pairs)) for pairs in both.values() if (kappa := cohen_kappa(pairs, distance)) is not None]
    total = sum(count for _, count in found)
    return sum(kappa * count for kappa, count in found) / total if total else None


def cohen_kappa(
    pairs: Sequence[tuple[float, float]], distance: Callable[[float, float], float] = lambda a, b: float(a != b)
) -> float | None:
    """Compute Cohen's κ (1960; with weights 1968) of two annotators; None where chance alone agrees wholly.

    >>> round(cohen_kappa([(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15), 9)
    0.4
    """
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(distance(a, b) for a, b in pairs) / len(pairs)
    expected = sum(n * m * distance(a, b) for a, n in first.items() for b, m in second.items()) / len(pairs) ** 2
    return 1 - observed / expected if expected else None


def _row(records: Sequence[Record], annotator: int, first: str | None, empty: AnnotatorRow) -> AnnotatorRow:
    own = [(record, judged) for record in records for judged in record.votes if judged.annotator == annotator]
    known = {
        purpose: [
            right
            for record, judged in own
            if record.purpose == purpose and (right := correct(record.kind, judged.answer, record.answer)) is not None
        ]
        for purpose in ("gold", "training")
    }
    work = [(record, judged) for record, judged in own if record.purpose != "training"]
    seconds = [judged.seconds for _, judged in work if judged.seconds is not None]
    decided = [(r, j) for r, j in work if r.kind == "pair" and j.answer["choice"] in (0, 1)]
    return AnnotatorRow(
        pseudonym=empty.pseudonym,
        name=empty.name,
        judgements=sum(record.purpose == "item" for record, _ in own),
        skips=empty.skips,
        gold_right=sum(known["gold"]),
        gold_total=len(known["gold"]),
        training_right=sum(known["training"]),
        training_total=len(known["training"]),
        seconds_median=statistics.median(seconds) if seconds else None,
        left=share([judged.order[0] == judged.answer["choice"] for _, judged in decided]),
        longer=share([found for r, j in decided if (found := _longer(r, j)) is not None]),
        first_model=share([found for r, j in decided if (found := _first_model(r, j, first)) is not None]),
        others=share([found for r, j in own if (found := _as_others(r, j)) is not None]),
    )


def _as_recorded(record: Record) -> list[bool]:
    if record.kind != "pair" or record.answer is None:
        return []
    choices = [judged.answer["choice"] for judged in record.votes]
    return [choice == record.answer["choice"] for choice in choices if choice in (0, 1)]


def _longer(record: Record, judged: Judged) -> bool | None:
    """Whether the chosen response is the longer one, in characters; None where both are as long."""
    lengths = [len(text_of(content)) for content in record.responses]
    chosen = judged.answer["choice"]
    return None if lengths[0] == lengths[1] else lengths[chosen] > lengths[1 - chosen]


def _first_model(record: Record, judged: Judged, first: str | None) -> bool | None:
    if first is None or [model == first for model in record.models].count(True) != 1:
        return None
    return record.models[judged.answer["choice"]] == first


def _as_others(record: Record, judged: Judged) -> bool | None:
    """Whether an annotator chose as most others of a pair; None where most others chose neither of the two."""
    if record.kind != "pair":
        return None
    choices = Counter(other.answer["choice"] for other in record.votes if other.annotator != judged.annotator)
    most = next((choice for choice in (0, 1) if 2 * choices[choice] > choices.total()), None)
    return None if most is None else judged.answer["choice"] == most

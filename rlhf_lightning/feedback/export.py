"""Judgements as rows that the data modules read: pairs, rankings, ratings, demonstrations."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.items import text_of
from rlhf_lightning.feedback.records import Judged, Record, read_records
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.io import atomic_write

Row = dict[str, Any]

SQLITE = b"SQLite format 3\0"
"""How a database begins."""


@dataclass
class Exported:
    """Rows of one kind, and how many items gave none, by reason."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def noise_line(self) -> str | None:
        """Say which share of the pairs is expected to be the wrong way round, and what robust DPO takes for it."""
        wrong = statistics.fmean(1 - row.get("probability", 1.0) for row in self.rows)
        if not 0.005 <= wrong < 0.495:
            return None
        return (
            f"about {wrong:.0%} of the pairs are expected to be the wrong way round; robust DPO corrects for it: "
            f"--model.algorithm.robust true --model.algorithm.label_smoothing {wrong:.2f}"
        )

    def skip(self, reason: str) -> None:
        """Count an item that gives no row."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


def export(
    store: Store,
    kind: str,
    ties: bool = False,
    decided: bool = False,
    criterion: str | None = None,
    reconcile: str = "majority",
) -> Exported:
    """Make the rows of one kind.

    Args:
        store: where the judgements are.
        kind: `pairs` (PreferenceData), `rankings` (RankingData), `ratings` (RatingData) or `demonstrations` (InstructionData).
        ties: give pairs of probability 0.5 too.
        decided: only items that are settled or adjudicated.
        criterion: of ratings; by default the mean of all.
        reconcile: of pairs, how several annotators become one probability, a name of `annotators.METHODS`.

    Raises:
        UserError: no rating has this criterion, or there is no such way to reconcile.
    """
    with store.database.snapshot() as connection:
        every = read_records(connection, ("item", "gold", "training"))
    records = [record for record in every if record.purpose == "item"]
    if decided:
        records = [record for record in records if record.state in ("settled", "adjudicated")]
    found = Exported()
    if kind == "pairs":
        _pairs(records, ties, _probabilities(every, reconcile), found)
    elif kind == "rankings":
        _rankings(records, found)
    elif kind == "ratings":
        _ratings(records, criterion, found)
    else:
        found.rows = [row for record in records for row in _demonstrations(record)]
    return found


def _probabilities(records: Sequence[Record], method: str) -> dict[int, tuple[float, float]]:
    """Reconcile the annotators; by majority nothing is computed that needs torch."""
    if method == "majority":
        return {}
    from rlhf_lightning.feedback.annotators import reconcile

    return reconcile(records, method).pairs


def _pairs(
    records: Sequence[Record], ties: bool, probabilities: dict[int, tuple[float, float]], found: Exported
) -> None:
    for record in _judged(records, "pair"):
        row = pair_row(record, probabilities.get(record.id))
        if row["chosen"] is None or row["rejected"] is None:
            found.skip("a response without text")
        elif row["probability"] == 0.5 and not ties:
            found.skip("a tie")
        else:
            found.rows.append(row)
    found.rows += [row for record in records for row in _improvements(record)]


def _judged(records: Sequence[Record], kind: str) -> Iterator[Record]:
    return (record for record in records if record.kind == kind and record.judgements)


def pair_row(record: Record, reconciled: tuple[float, float] | None = None) -> Row:
    """Make the row of a judged pair; the better response is `chosen`.

    `probability` is the share of the annotators who chose it, a tie or both bad counting half, or what `reconciled` says of the
    first response, with its standard deviation as `deviation`; an adjudicator's judgement alone counts where there is one.
    `agreement` is the share of judgements two by two that are the same, null for a single one. `recorded`, of a pair that a file
    brought, says which of the two that file preferred.
    """
    first = statistics.fmean(judged.first_better for judged in record.deciding)
    deviation = None
    if reconciled is not None:
        first, deviation = reconciled
    better = 0 if first >= 0.5 else 1
    choices = [judged.answer["choice"] for judged in record.votes]
    return {
        "prompt": record.prompt,
        "chosen": record.responses[better],
        "rejected": record.responses[1 - better],
        "probability": max(first, 1 - first),
        **({} if deviation is None else {"deviation": deviation}),
        **_common(record, lambda judged: _relative(judged, better)),
        "agreement": _same(choices),
        "chosen_model": record.models[better],
        "rejected_model": record.models[1 - better],
    } | ({} if record.answer is None else {"recorded": _relative_choice(record.answer["choice"], better)})


def _relative(judged: Judged, better: int) -> Row:
    """Say a judgement of a pair in terms of its row's columns."""
    strength = judged.answer.get("strength")
    said = {
        "choice": _relative_choice(judged.answer["choice"], better),
        "left": _relative_choice(judged.order[0], better),
    }
    return said | ({} if strength is None else {"strength": strength})


def _relative_choice(choice: int | str, better: int) -> str:
    return {better: "chosen", 1 - better: "rejected", "tie": "tie", "bad": "both bad"}[choice]


def _same(values: Sequence[Any]) -> float | None:
    two = [a == b for i, a in enumerate(values) for b in values[i + 1 :]]
    return statistics.fmean(two) if two else None


def _common(record: Record, said: Callable[[Judged], Row]) -> Row:
    """Make the columns that rows of every kind have: who said what, and where the item comes from."""
    return {
        "judgements": [
            {
                "annotator": judged.pseudonym,
                **said(judged),
                "reasons": judged.answer.get("reasons", []),
                "comment": judged.answer.get("comment", ""),
                "seconds": judged.seconds,
                "guidelines": judged.guidelines,
                "adjudication": judged.adjudication,
            }
            for judged in record.judgements
        ],
        "annotators": [judged.pseudonym for judged in record.votes],
        "state": record.state,
        "item": record.id,
        "round": record.round,
        "asked_with_probability": record.probability,
    }


def _improvements(record: Record) -> Iterator[Row]:
    """Make a pair of every response that an annotator improved: the new text is better than the old one."""
    for judged in record.judgements:
        for edit in judged.answer.get("edits", []):
            old = record.responses[edit["response"]]
            if old is None or text_of(old).strip() == edit["text"].strip():
                continue
            yield {
                "prompt": record.prompt,
                "chosen": edit["text"] if isinstance(old, str) else _turn(edit["text"]),
                "rejected": old,
                "probability": 1.0,
                **_common(record, lambda _: {}),
                "judgements": [],
                "annotators": [judged.pseudonym],
                "agreement": None,
                "chosen_model": None,
                "rejected_model": record.models[edit["response"]],
            }


def _demonstrations(record: Record) -> Iterator[Row]:
    for judged in record.judgements:
        for edit in judged.answer.get("edits", []):
            yield {
                "prompt": record.prompt,
                "completion": edit["text"] if isinstance(record.prompt, str) else _turn(edit["text"]),
                "annotator": judged.pseudonym,
                "model": record.models[edit["response"]],
                "item": record.id,
                "round": record.round,
            }


def _turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _rankings(records: Sequence[Record], found: Exported) -> None:
    """Order responses by their mean rank; two of equal mean rank have no order, so the item gives no row."""
    for record in _judged(records, "ranking"):
        ranks = [statistics.fmean(j.answer["ranks"][i] for j in record.deciding) for i in range(len(record.responses))]
        order = sorted(range(len(ranks)), key=lambda i: ranks[i])
        if None in record.responses:
            found.skip("a response without text")
        elif len(set(ranks)) < len(ranks):
            found.skip("responses of equal mean rank")
        else:
            found.rows.append(
                {
                    "prompt": record.prompt,
                    "responses": [record.responses[i] for i in order],
                    "mean_ranks": [ranks[i] for i in order],
                    "models": [record.models[i] for i in order],
                    **_common(record, _ranks_in(order)),
                    "agreement": _same([tuple(judged.answer["ranks"]) for judged in record.votes]),
                }
            )


def _ranks_in(order: Sequence[int]) -> Callable[[Judged], Row]:
    return lambda judged: {"ranks": [judged.answer["ranks"][i] for i in order]}


def _ratings(records: Sequence[Record], criterion: str | None, found: Exported) -> None:
    """Make a row of each response: its mean rating over annotators, of one criterion or over all."""
    rated = list(_judged(records, "rating"))
    known = sorted({name for record in rated for name in record.criteria})
    if criterion is not None and rated and criterion not in known:
        raise UserError(f"no rating has the criterion {criterion!r}; set --criterion to one of: {', '.join(known)}")
    for record in rated:
        for index, content in enumerate(record.responses):
            if content is None:
                found.skip("a response without text")
            elif criterion is not None and criterion not in record.criteria:
                found.skip(f"no criterion {criterion}")
            else:
                found.rows.append(_rating_row(record, index, criterion))


def _rating_row(record: Record, index: int, criterion: str | None) -> Row:
    means = {
        name: statistics.fmean(judged.answer["scores"][index][name] for judged in record.deciding)
        for name in record.criteria
    }
    return {
        "prompt": record.prompt,
        "response": record.responses[index],
        "rating": statistics.fmean(means.values()) if criterion is None else means[criterion],
        "ratings": means,
        "model": record.models[index],
        **_common(record, lambda judged: {"scores": judged.answer["scores"][index]}),
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written, or is a database or the log of one.
    """
    if _is_database(path):
        raise UserError(f"export {path} would replace an SQLite database, such as a store; give another name")
    try:
        atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"export {path} cannot be written: {error.strerror}") from error


def _is_database(path: Path) -> bool:
    """Whether a file is an SQLite database, or what SQLite or a server keeps beside one."""
    for suffix in ("", "-wal", "-shm", "-journal", ".serving"):
        if str(path).endswith(suffix):
            with contextlib.suppress(OSError), open(str(path).removesuffix(suffix), "rb") as file:
                if file.read(len(SQLITE)) == SQLITE:
                    return True
    return False

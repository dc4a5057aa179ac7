"""A store's progress and agreement as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_lightning.feedback.agreement import Agreement, AnnotatorRow, Overview
    from rlhf_lightning.feedback.shares import Share

COLUMNS = ("annotator", "name", "judged", "skipped", "gold", "training", "seconds", "left", "longer", "first model")


def status_lines(overview: Overview) -> list[str]:
    """Return what `feedback status` prints."""
    states = ("open", "settled", "disputed", "adjudicated")
    counts = ", ".join(f"{getattr(overview, state)} {state}" for state in states)
    lines = [f"items       {overview.items}: {counts}", f"judgements  {overview.judgements}"]
    lines += [f"agreement   {_agreement(found)}" for found in overview.agreement]
    if overview.recorded is not None:
        lines.append(
            f"recorded    {said_share(overview.recorded)} of {overview.recorded.cases} choices are those of the file"
        )
    if overview.annotators:
        lines += ["", *_table(_rows(overview.annotators))]
        lines += [
            "",
            "left, longer, first model: share of choices for the response that was it, with its 95 % interval",
        ]
    if overview.first_model is not None:
        lines.append(f"first model: {overview.first_model}")
    return lines


def _rows(annotators: list[AnnotatorRow]) -> list[tuple[str, ...]]:
    """Return the heading and a row for each annotator, with reliabilities where they were asked for."""
    rows = [COLUMNS, *(_cells(row) for row in annotators)]
    values = [row.reliability for row in annotators]
    if all(value is None for value in values):
        return rows
    column = ["reliability", *("-" if value is None else f"{value:.2f}" for value in values)]
    return [(*row, cell) for row, cell in zip(rows, column, strict=True)]


def _agreement(found: Agreement) -> str:
    if not found.units:
        return f"{found.what}: nothing was judged twice"
    alpha, kappa = (("undefined" if value is None else f"{value:.2f}") for value in (found.alpha, found.kappa))
    return (
        f"{found.what}: Krippendorff's α {alpha}, Cohen's κ {kappa}, {found.percent:.0f} % ({found.units} judged twice)"
    )


def _cells(row: AnnotatorRow) -> tuple[str, ...]:
    return (
        row.pseudonym,
        row.name or "-",
        str(row.judgements),
        str(row.skips),
        _of(row.gold_right, row.gold_total),
        _of(row.training_right, row.training_total),
        "-" if row.seconds_median is None else f"{row.seconds_median:.1f}",
        said_share(row.left),
        said_share(row.longer),
        said_share(row.first_model),
    )


def _of(right: int, total: int) -> str:
    return f"{right}/{total}" if total else "-"


def said_share(found: Share | None) -> str:
    """Return a share and its interval."""
    return "-" if found is None else f"{found.share:.2f} ({found.low:.2f}-{found.high:.2f})"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

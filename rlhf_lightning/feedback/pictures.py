"""`feedback status --html`: what is known of a store as one page that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf_lightning.feedback.agreement import Agreement, AnnotatorRow, Overview
from rlhf_lightning.feedback.charts import Point, interval_chart
from rlhf_lightning.feedback.shares import Share, interval
from rlhf_lightning.feedback.status import said_share

TEMPLATES = Path(__file__).parent / "templates"
ANNOTATORS = ("annotator", "judged", "as most others", "gold right", "left", "longer", "reliability")
OF_OTHERS = (
    "As most others: how often the annotator chose as most others of a pair did. Reliability: of the method that reconciles, "
    "with the interval of a share of as many judgements. Intervals are of 95 %."
)


@dataclass(frozen=True)
class Section:
    """A heading with pictures and a table."""

    heading: str
    note: str = ""
    charts: Sequence[Markup] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())


def page(title: str, note: str, sections: Sequence[Section]) -> str:
    """Render a page that loads nothing and needs no script."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("pictures.html").render(title=title, note=note, sections=sections)


def store_page(title: str, found: Overview) -> str:
    """Render the page about one store."""
    states = [
        (name, str(getattr(found, name)))
        for name in ("items", "open", "settled", "disputed", "adjudicated", "judgements")
    ]
    progress = Section("Progress", columns=[name for name, _ in states], rows=[[count for _, count in states]])
    return page(
        title, "Human feedback.", [progress, agreement_section(found.agreement), annotators_section(found.annotators)]
    )


def agreement_section(agreement: Sequence[Agreement]) -> Section:
    """Return the section on how far annotators agree."""
    rows = [
        [each.what, _number(each.alpha), _number(each.kappa), _percent(each.percent), str(each.units)]
        for each in agreement
    ]
    note = "" if any(each.units for each in agreement) else "Nothing was judged twice."
    columns = ("kind", "Krippendorff's α", "Cohen's κ", "agree", "judged twice or more")
    return Section(
        "Agreement", note or "α and κ are 1 where all agree, and 0 for as much as by chance.", (), columns, rows
    )


def annotators_section(annotators: Sequence[AnnotatorRow]) -> Section:
    """Return the section on each annotator."""
    with_others = [(row.pseudonym, _point(row.others)) for row in annotators if row.others is not None]
    reliabilities = reliability_intervals(annotators)
    reliable = [(name, _point(found)) for name, found in reliabilities.items()]
    charts = []
    if reliable:
        charts.append(interval_chart("Reliability of each annotator", reliable))
    if with_others:
        charts.append(interval_chart("Share of choices that are those of most others", with_others, middle=0.5))
    rows = [
        [
            row.pseudonym,
            str(row.judgements),
            said_share(row.others),
            f"{row.gold_right}/{row.gold_total}" if row.gold_total else "-",
            said_share(row.left),
            said_share(row.longer),
            said_share(reliabilities[row.pseudonym]) if row.pseudonym in reliabilities else _number(row.reliability),
        ]
        for row in annotators
    ]
    return Section("Annotators", OF_OTHERS if rows else "Nobody is invited yet.", charts, ANNOTATORS, rows)


def reliability_intervals(annotators: Sequence[AnnotatorRow]) -> dict[str, Share]:
    """Return the annotators' reliabilities as shares of their judgements; none where they are weights, whose mean is 1."""
    values = {row.pseudonym: row for row in annotators if row.reliability is not None and row.judgements}
    if any(not 0 <= float(row.reliability or 0) <= 1 for row in values.values()):
        return {}
    return {name: interval(float(row.reliability or 0), row.judgements) for name, row in values.items()}


def _point(found: Share | None) -> Point:
    assert found is not None
    return Point(0.0, found.share, found.low, found.high)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"

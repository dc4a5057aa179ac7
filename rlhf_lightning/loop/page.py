"""The page about a loop: what its labels gave, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from markupsafe import Markup

from rlhf_lightning.feedback.agreement import Agreement, AnnotatorRow
from rlhf_lightning.feedback.charts import Curve, Point, curve_chart
from rlhf_lightning.feedback.pictures import Section, agreement_section, annotators_section, page
from rlhf_lightning.feedback.shares import Share, interval

Row = dict[str, Any]
ACCURACY = "val/preference/accuracy"
REWARD = "val/reward/"


def loop_page(title: str, measured: Sequence[Row], note: str) -> str:
    """Render the page.

    Args:
        title: heading.
        measured: the rows of `measured.json`, one per round.
        note: below the heading.
    """
    if not measured:
        return page(title, note, [])
    last = measured[-1]
    sections = [
        Section(
            "Rounds", "Metrics are held-out ones, after the round's runs.", charts(measured), COLUMNS, table(measured)
        ),
        agreement_section([Agreement(**each) for each in last["agreement"]]),
        annotators_section([annotator(each) for each in last["annotators"]]),
    ]
    return page(title, note, sections)


COLUMNS = (
    "round",
    "labels",
    "held out",
    "judgements",
    "agreement α",
    "reward model's accuracy",
    "reward",
    "true reward",
)


def table(measured: Sequence[Row]) -> list[list[str]]:
    """Return a row of text for each round, with the columns COLUMNS."""
    return [
        [
            str(row["round"]),
            str(row["labels"]),
            str(row["held_out"]),
            str(row["judgements"]),
            _number(row["agreement"][0]["alpha"] if row["agreement"] else None),
            _number(row["reward"].get(ACCURACY)),
            *(_number(row["policy"].get(f"{REWARD}{name}")) for name in ("mean", "true")),
        ]
        for row in measured
    ]


def charts(measured: Sequence[Row]) -> list[Markup]:
    """Draw labels against held-out accuracy, agreement by round, and every reward by round, before and after."""
    accuracy = [point for row in measured if (point := accuracy_point(row)) is not None]
    alphas = [
        Point(row["round"], row["agreement"][0]["alpha"])
        for row in measured
        if row["agreement"] and row["agreement"][0]["alpha"] is not None
    ]
    found = []
    if accuracy:
        title = "Reward model: accuracy on held-out labels, 95 % interval"
        found.append(curve_chart(title, "labels to learn from", [Curve("accuracy", accuracy)]))
    if alphas:
        found.append(curve_chart("Agreement of annotators: Krippendorff's α", "round", [Curve("α", alphas)]))
    names = sorted({name for row in measured for name in row["policy"] if name.startswith(REWARD)})
    for name in names:
        curves = [
            Curve(what, [Point(row["round"], row[key][name]) for row in measured if row[key].get(name) is not None])
            for what, key in (("before", "policy_before"), ("after", "policy"))
        ]
        if any(curve.points for curve in curves):
            what = name.removeprefix(REWARD)
            title = (
                "Policy: held-out reward that it learns from" if what == "mean" else f"Policy: held-out reward {what}"
            )
            found.append(curve_chart(title, "round", [curve for curve in curves if curve.points]))
    return found


def accuracy_point(row: Row) -> Point | None:
    """Return the accuracy of a round's reward model on its held-out labels, over the labels that it learned from."""
    value = row["reward"].get(ACCURACY)
    if value is None:
        return None
    if not row["held_out"]:
        return Point(row["labels"], value)
    found = interval(value, row["held_out"])
    return Point(row["labels"], value, found.low, found.high)


def annotator(row: Row) -> AnnotatorRow:
    """Return what `measured.json` has of an annotator."""
    shares = ("left", "longer", "first_model", "others")
    known = {each.name for each in fields(AnnotatorRow)}
    values: Row = {name: value for name, value in row.items() if name in known}
    return AnnotatorRow(**(values | {name: _share(row.get(name)) for name in shares}))


def _share(found: Row | None) -> Share | None:
    return None if found is None else Share(**found)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

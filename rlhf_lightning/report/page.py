"""A report as one HTML page that loads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf_lightning.report.content import SAMPLES_BUDGET, Report

FOLDER = Path(__file__).parent
LARGEST = 5_000_000
"""Bytes of a page, at most."""
SCRIPTS = ("uPlot.iife.min.js", "charts.js", "texts.js")
STYLES = ("uPlot.min.css", "report.css")


def html_report(report: Report, reload_seconds: float | None = None) -> str:
    """Render the page about runs.

    Args:
        report: its contents.
        reload_seconds: the page reloads itself after these; None: never.

    Returns:
        HTML of less than `LARGEST` bytes; responses are not shown where they would not fit.
    """
    budget = SAMPLES_BUDGET
    while True:
        page = _render(report, report.data(budget), reload_seconds, {})
        if len(page.encode()) < LARGEST or budget < 1000:
            return page
        budget //= 2


def html_comparison(title: str, comparison: Mapping[str, Any], samples: Mapping[str, Any]) -> str:
    """Render the page about a comparison of models, without runs.

    Args:
        title: heading of the page.
        comparison: `names`, `matrix`, `judge`, `prompts`, `heading`, `note`, `columns` and `rows`, all as text.
        samples: in the form of `side_by_side`; the page has as many of their rows as fit.
    """
    report = Report(title, (), (), (), {}, (), ())
    rows = list(samples["rows"])
    while True:
        data = {
            "runs": list(comparison["names"]),
            "curves": {"metrics": {}, "charts": [], "groups": []},
            "frontier": {"scores": [], "points": [], "runs": []},
            "samples": {**samples, "rows": rows},
            "tokens": [],
        }
        page = _render(report, data, None, {"comparison": comparison})
        if len(page.encode()) < LARGEST or not rows:
            return page
        rows = rows[: len(rows) // 2]


def _render(report: Report, data: dict[str, Any], reload_seconds: float | None, extra: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts, styles = ([_static(name) for name in names] for names in (SCRIPTS, STYLES))
    nonce = hashlib.sha256("".join((*scripts, report.title)).encode()).hexdigest()[:24]
    template = environment.get_template("report.html")
    return template.render(
        report=report,
        data=data,
        scripts=scripts,
        styles=styles,
        nonce=nonce,
        reload_seconds=reload_seconds,
        extra=extra,
    )


def _static(name: str) -> Markup:
    """Return a file of this package, which is not escaped."""
    return Markup((FOLDER / "static" / name).read_text(encoding="utf-8"))

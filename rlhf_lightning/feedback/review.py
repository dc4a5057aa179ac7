"""The pages of an adjudicator and of the owner: disputed items, progress, agreement, and how each annotator judges."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import forms
from rlhf_lightning.feedback.agreement import Agreement, AnnotatorRow, Overview, Share
from rlhf_lightning.feedback.agreement import overview as measure
from rlhf_lightning.feedback.pages import task_page
from rlhf_lightning.feedback.sessions import Refused, annotator_of
from rlhf_lightning.feedback.views import first_words, page

COLUMNS = ("Annotator", "Judgements", "Skipped", "Gold right", "Median seconds", "Left", "Longer", "First model")
LISTED = 100
"""Disputed items on one page."""
RECENT_SECONDS = 2.0
"""How old the measured overview may be: reloading it does not keep the store busy."""


def disputes(request: Request) -> Response:
    """List the items on which annotators differ."""
    store = request.app.state.store
    annotator = annotator_of(request, store, "adjudicator")
    found = store.disputed()
    items = [(item, first_words(store.judgements_of(item)[0].item), count) for item, count in found[:LISTED]]
    return page(request, "disputes.html", annotator=annotator, items=items, total=len(found), here="disputes")


def dispute(request: Request) -> Response:
    """Show one disputed item, and below its form what the annotators said."""
    store = request.app.state.store
    annotator = annotator_of(request, store, "adjudicator")
    item = request.path_params["item"]
    try:
        lease = store.adjudicate(annotator.id, item)
    except UserError as error:
        raise Refused(409, "Not open to a decision", f"{error}.", ("disputes", "Disputed items")) from error
    said = [
        {
            "pseudonym": entry.pseudonym,
            "said": forms.describe(lease.item, lease.order, entry.answer),
            "reasons": entry.answer.get("reasons", []),
            "comment": entry.answer.get("comment", ""),
        }
        for entry in store.judgements_of(item)
    ]
    return task_page(request, annotator, lease, template="dispute.html", said=said, here="disputes")


def overview(request: Request) -> Response:
    """Show the owner how far the work is and how well annotators agree."""
    state = request.app.state
    annotator = annotator_of(request, state.store, "owner")
    if time.monotonic() - state.measured_at > RECENT_SECONDS:
        state.measured, state.measured_at = measure(state.store), time.monotonic()
    found = state.measured
    return page(
        request,
        "overview.html",
        annotator=annotator,
        tiles=_tiles(found),
        agreement=[_agreement(row) for row in found.agreement],
        columns=COLUMNS,
        rows=[_row(row) for row in found.annotators],
        first_model=found.first_model,
        here="overview",
    )


def _tiles(found: Overview) -> list[tuple[str, str, str]]:
    decided = found.settled + found.adjudicated
    return [
        ("Items", f"{found.items:,}", f"{found.open:,} still open"),
        ("Decided", f"{decided:,}", f"{found.settled:,} settled, {found.adjudicated:,} by an adjudicator"),
        ("Disputed", f"{found.disputed:,}", "wait for an adjudicator" if found.disputed else "none waits"),
        ("Judgements", f"{found.judgements:,}", "without skips, gold and training"),
    ]


def _agreement(row: Agreement) -> tuple[str, str, str, str, str]:
    return row.what, _decimal(row.alpha), _decimal(row.kappa), _percent(row.percent), f"{row.units:,}"


def _row(row: AnnotatorRow) -> tuple[str, ...]:
    gold = f"{row.gold_right} of {row.gold_total}" if row.gold_total else "–"
    pace = "–" if row.seconds_median is None else f"{row.seconds_median:.0f}"
    leanings = (_share(row.left), _share(row.longer), _share(row.first_model))
    return (row.name or "", row.pseudonym, f"{row.judgements:,}", f"{row.skips:,}", gold, pace, *leanings)


def _share(share: Share | None) -> str:
    if share is None:
        return "–"
    mark = " !" if share.low > 0.5 or share.high < 0.5 else ""
    return f"{100 * share.share:.0f} % ({100 * share.low:.0f}–{100 * share.high:.0f}){mark}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"

"""The annotator's pages: the invitation, the current item, saving and undoing."""

from __future__ import annotations

import math
import time
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rlhf_lightning.feedback import forms
from rlhf_lightning.feedback.answers import InvalidAnswerError
from rlhf_lightning.feedback.answers import correct as judged_right
from rlhf_lightning.feedback.judgements import Entry, Saved, TooFastError
from rlhf_lightning.feedback.leases import Lease
from rlhf_lightning.feedback.people import Annotator
from rlhf_lightning.feedback.sessions import Refused, annotator_of, check_form, check_origin, require_role, set_cookie
from rlhf_lightning.feedback.views import from_script, go_to, media_paths, page, path_for

MOST_FIELDS = 200
LONGEST_SECONDS = 24 * 3600.0


async def read_form(request: Request) -> FormData:
    """Read a form of text fields.

    Raises:
        Refused: The body is not a form (415), or has too many or too large fields (400).
    """
    check_origin(request)
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused(415, "Not a form", "This address takes the form of its page only, so nothing was saved.")
    return await request.form(max_files=0, max_fields=MOST_FIELDS, max_part_size=4 * 2**20)


def join(request: Request) -> Response:
    """Show an invitation; only the button behind it opens a session."""
    invited = request.app.state.store.invited(request.path_params["invitation"])
    if invited is None:
        raise Refused(404, "No such invitation", "The link is incomplete or was replaced. Ask for a new one.")
    return page(request, "join.html", invited=invited)


async def accept(request: Request) -> Response:
    """Exchange an invitation for a session."""
    check_origin(request)
    store = request.app.state.store

    def open_session() -> tuple[Annotator | None, str]:
        invited = store.invited(request.path_params["invitation"])
        return invited, store.open_session(invited.id) if invited else ""

    invited, session = await run_in_threadpool(open_session)
    if invited is None:
        raise Refused(404, "No such invitation", "The link is incomplete or was replaced. Ask for a new one.")
    start = "task" if "annotator" in invited.roles else "overview" if "owner" in invited.roles else "disputes"
    response = RedirectResponse(path_for(request, start), 303)
    set_cookie(request, response, session)
    return response


def task(request: Request) -> Response:
    """Show the annotator's current item."""
    store = request.app.state.store
    annotator = annotator_of(request, store)
    lease = store.next(annotator.id)
    if lease is None:
        return page(request, "done.html", annotator=annotator, progress=store.progress_of(annotator.id), here="task")
    return task_page(request, annotator, lease, here="task")


def task_page(
    request: Request,
    annotator: Annotator,
    lease: Lease,
    *,
    template: str = "task.html",
    form: FormData | None = None,
    error: str | None = None,
    status: int = 200,
    **values: Any,
) -> Response:
    """Show the item of a lease with its form, filled as it was sent where that was refused."""
    store = request.app.state.store
    version, guidelines = store.guidelines()
    values.setdefault("here", "")
    return page(
        request,
        template,
        status=status,
        annotator=annotator,
        item=lease.item,
        order=lease.order,
        purpose="item" if lease.purpose == "gold" else lease.purpose,
        lease_id=lease.id,
        action=path_for(request, "save"),
        media=media_paths(request, "media", lease.item, lease.order, lease=lease.id),
        fields=forms.sent_fields(form) if form is not None else {},
        error=error,
        entry=None,
        wait=round(lease.wait(store.settings.minimum_seconds, time.time()), 1),
        progress=store.progress_of(annotator.id),
        settings=store.settings,
        guidelines=guidelines,
        guidelines_version=version,
        longest_comment=forms.LONGEST_COMMENT,
        **values,
    )


async def save(request: Request) -> Response:
    """Save a judgement and show the next item."""
    form = await read_form(request)
    return await run_in_threadpool(_save, request, form)


def _save(request: Request, form: FormData) -> Response:
    store = request.app.state.store
    annotator = annotator_of(request, store, role=None)
    check_form(request, form)
    lease = store.lease(annotator.id, identity(str(form.get("lease", ""))))
    if lease is None:
        raise _not_yours()
    require_role(annotator, "adjudicator" if lease.purpose == "adjudication" else "annotator")
    if lease.answer is None:
        try:
            answer = forms.parse(lease.item, lease.order, store.settings, form)
            seconds = seconds_taken(form, time.time() - lease.opened)
            saved = store.save(annotator.id, lease.id, answer, seconds=seconds, guidelines=shown_guidelines(form))
        except (forms.FormError, InvalidAnswerError) as error:
            return _refused_form(request, annotator, lease, form, str(error))
        except TooFastError as error:
            text = f"Please read a little longer: {math.ceil(error.wait)} s. Your answer is kept on this page."
            return _refused_form(request, annotator, lease, form, text)
        if saved.status in ("saved", "repeated"):
            return _after_saving(request, lease, saved)
        if saved.status == "expired":
            return go_to(request, "task", "expired")
        raise _not_yours()
    return _repeated(request, lease, form)


def _after_saving(request: Request, lease: Lease, saved: Saved) -> Response:
    if lease.purpose == "training":
        return go_to(request, "trained", lease=lease.id)
    if lease.purpose == "adjudication":
        return go_to(request, "disputes", "settled")
    return go_to(request, "task", "repeated" if saved.status == "repeated" else None)


def _repeated(request: Request, lease: Lease, form: FormData) -> Response:
    """Answer a form that was sent before: the first answer counts, and a different one is said to be different."""
    try:
        same = forms.parse(lease.item, lease.order, request.app.state.store.settings, form) == lease.answer
    except forms.FormError:
        same = False
    if same or lease.purpose == "training":
        return go_to(request, "task", "repeated")
    first = forms.describe(lease.order, lease.answer)
    raise Refused(
        409,
        "You have judged this item already",
        f"Your first answer counts, once: {first}. Correct it in your history if it should be different.",
        ("history", "To your history"),
        ("task", "To the current item"),
    )


def _not_yours() -> Refused:
    return Refused(
        404,
        "Not your item",
        "There is no such item in your hands, so nothing was saved.",
        ("task", "Your current item"),
    )


def _refused_form(request: Request, annotator: Annotator, lease: Lease, form: FormData, error: str) -> Response:
    if from_script(request):
        raise Refused(422, "Not saved", error)
    return task_page(request, annotator, lease, form=form, error=error, status=422)


def seconds_taken(form: FormData, elapsed: float) -> float:
    """Return the seconds that the page was in view, never more than since it was opened."""
    try:
        reported = float(str(form.get("seconds", "")) or elapsed)
    except ValueError:
        reported = elapsed
    return max(0.0, min(reported, elapsed, LONGEST_SECONDS)) if reported == reported else elapsed


def shown_guidelines(form: FormData) -> int | None:
    """Return the version of the guidelines that the page showed; None where the form does not say."""
    text = str(form.get("guidelines", ""))
    return identity(text) if text else None


async def undo(request: Request) -> Response:
    """Take back the newest judgement and show its item again."""
    form = await read_form(request)

    def run() -> Response:
        store = request.app.state.store
        annotator = annotator_of(request, store)
        check_form(request, form)
        return go_to(request, "task", "nothing" if store.undo(annotator.id) is None else "undone")

    return await run_in_threadpool(run)


def trained(request: Request) -> Response:
    """Show a training item's known answer beside the annotator's."""
    store = request.app.state.store
    annotator = annotator_of(request, store)
    lease = store.lease(annotator.id, request.path_params["lease"])
    if lease is None or lease.purpose != "training" or lease.answer is None:
        raise _not_yours()
    return page(
        request,
        "trained.html",
        annotator=annotator,
        item=lease.item,
        order=lease.order,
        correct=judged_right(lease.item.kind, lease.answer, lease.item.answer),
        own=forms.describe(lease.order, lease.answer),
        known=forms.describe(lease.order, lease.item.answer),
        media=media_paths(request, "media", lease.item, lease.order, lease=lease.id),
    )


def media(request: Request) -> Response:
    """Send the image at a position of a lease."""
    store = request.app.state.store
    annotator = annotator_of(request, store, role=None)
    return image(request, store.lease(annotator.id, request.path_params["lease"]))


def image(request: Request, shown: Lease | Entry | None) -> Response:
    """Send the image at a position of a lease or of a past judgement."""
    place = request.path_params["place"]
    found = None
    if shown is not None and 1 <= place <= len(shown.order):
        found = request.app.state.store.media(shown.item.id, shown.order[place - 1])
    if found is None or not found[0].startswith("image/") or "svg" in found[0]:
        raise Refused(404, "No such image", "This item has no image there.")
    return Response(found[1], media_type=found[0], headers={"Cache-Control": "private, no-cache"})


def identity(text: str) -> int:
    """Read the number of a row; 0, which no row has, for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 18 else 0


def guidelines(request: Request) -> Response:
    """Show the guidelines on a page of their own."""
    store = request.app.state.store
    annotator = annotator_of(request, store, role=None)
    return page(request, "guidelines.html", annotator=annotator, guidelines=store.guidelines()[1], here="guidelines")

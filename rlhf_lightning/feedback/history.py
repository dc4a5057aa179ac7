"""The annotator's own history: what was judged, and its correction."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from rlhf_lightning.feedback import forms
from rlhf_lightning.feedback.answers import InvalidAnswerError
from rlhf_lightning.feedback.judgements import Entry
from rlhf_lightning.feedback.pages import LONGEST_SECONDS, identity, image, read_form, seconds_taken, shown_guidelines
from rlhf_lightning.feedback.people import Annotator
from rlhf_lightning.feedback.sessions import Refused, annotator_of, check_form
from rlhf_lightning.feedback.views import first_words, from_script, go_to, media_paths, page, path_for

HISTORY_PAGE = 50


def history(request: Request) -> Response:
    """List the annotator's judgements, newest first."""
    store = request.app.state.store
    annotator = annotator_of(request, store)
    before = request.query_params.get("before", "")
    entries = store.history(annotator.id, before=identity(before) if before else None, limit=HISTORY_PAGE)
    older = entries[-1].judgement_id if len(entries) == HISTORY_PAGE else None
    shown = [_shown(entry) for entry in entries]
    return page(request, "history.html", annotator=annotator, entries=shown, older=older, here="history")


def _shown(entry: Entry) -> dict[str, Any]:
    at = datetime.fromtimestamp(entry.at, UTC).astimezone()
    return {
        "judgement_id": entry.judgement_id,
        "prompt": first_words(entry.item),
        "said": forms.describe(entry.order, entry.answer),
        "comment": entry.answer.get("comment", ""),
        "corrected": entry.corrected,
        "time": at.isoformat(timespec="seconds"),
        "time_shown": f"{at:%d %b %Y, %H:%M}",
        "seconds": round(entry.seconds or 0),
    }


def correct(request: Request) -> Response:
    """Show a past judgement to be corrected."""
    annotator, entry = _entry(request)
    return _correction(request, annotator, entry)


def _entry(request: Request) -> tuple[Annotator, Entry]:
    store = request.app.state.store
    annotator = annotator_of(request, store)
    entry = store.entry(annotator.id, request.path_params["judgement"])
    if entry is None:
        raise Refused(
            404, "Not in your history", "You have no such judgement, or it was corrected since.", ("history", "History")
        )
    return annotator, entry


def _correction(
    request: Request, annotator: Annotator, entry: Entry, form: FormData | None = None, error: str | None = None
) -> Response:
    store = request.app.state.store
    filled = forms.fields(entry.item, entry.order, entry.answer) if form is None else forms.sent_fields(form)
    version, guidelines = store.guidelines()
    return page(
        request,
        "task.html",
        status=200 if error is None else 422,
        annotator=annotator,
        item=entry.item,
        order=entry.order,
        purpose="item",
        lease_id=None,
        action=path_for(request, "correct", judgement=entry.judgement_id),
        media=media_paths(request, "past_media", entry.item, entry.order, judgement=entry.judgement_id),
        fields=filled,
        error=error,
        entry=entry,
        wait=0,
        progress=None,
        settings=store.settings,
        guidelines=guidelines,
        guidelines_version=version,
        longest_comment=forms.LONGEST_COMMENT,
        here="history",
    )


async def save_correction(request: Request) -> Response:
    """Save a correction; the judgement that it replaces stays in the store's log."""
    form = await read_form(request)

    def run() -> Response:
        store = request.app.state.store
        annotator, entry = _entry(request)
        check_form(request, form)
        try:
            answer = forms.parse(entry.item, entry.order, store.settings, form)
            saved = store.correct(
                annotator.id,
                entry.judgement_id,
                answer,
                seconds=seconds_taken(form, LONGEST_SECONDS),
                guidelines=shown_guidelines(form),
            )
        except (forms.FormError, InvalidAnswerError) as error:
            if from_script(request):
                raise Refused(422, "Not saved", str(error)) from error
            return _correction(request, annotator, entry, form, str(error))
        if saved.status == "unknown":
            raise Refused(404, "Not in your history", "It was corrected since.", ("history", "History"))
        return go_to(request, "history", "full" if saved.status == "expired" else "corrected")

    return await run_in_threadpool(run)


def past_media(request: Request) -> Response:
    """Send the image at a position of a past judgement."""
    return image(request, _entry(request)[1])

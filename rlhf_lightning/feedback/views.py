"""Build pages: the templates, and what every page needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from rlhf_lightning.feedback.markdown import render
from rlhf_lightning.feedback.sessions import COOKIE, Refused, form_token

HERE = Path(__file__).parent
FOLD_AFTER = 2_500  # characters of a text that the page folds

NOTES = {
    "undone": "Undone: the item is open again.",
    "nothing": "There is nothing to undo.",
    "corrected": "The correction is saved.",
    "repeated": "That item was saved already; it counts once.",
    "expired": "You held that item for too long, and it went to somebody else. Your answer was not saved.",
    "full": "You had skipped that item, and others have judged it since. The correction was not saved.",
    "settled": "Your decision is saved.",
}


def environment() -> Environment:
    """Return the environment that renders the templates; every value is escaped unless `markdown` made it safe."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["markdown"] = render
    made.globals["fold_after"] = FOLD_AFTER
    return made


def path_for(request: Request, name: str, **parameters: Any) -> str:
    """Return a page's address without the host, with the prefix of a reverse proxy."""
    return str(request.scope.get("root_path", "")) + str(request.app.url_path_for(name, **parameters))


def page(request: Request, template: str, *, status: int = 200, annotator: Any = None, **values: Any) -> HTMLResponse:
    """Render a template as a response.

    Args:
        request: The request that is answered.
        template: The template's file.
        status: The status of the response.
        annotator: Who is signed in; None shows no navigation.
        values: What the template shows besides.
    """
    values.setdefault("note", NOTES.get(request.query_params.get("note", "")))
    values.setdefault("here", "")
    html = request.app.state.templates.get_template(template).render(
        path=lambda name, **parameters: path_for(request, name, **parameters),
        site=request.app.state.store.settings.title,
        token=form_token(request.cookies.get(COOKIE, "")),
        annotator=annotator,
        **values,
    )
    return HTMLResponse(html, status)


def from_script(request: Request) -> bool:
    """Say whether the page's script sent the request and reads JSON."""
    return request.headers.get("accept", "") == "application/json"


def go_to(request: Request, name: str, note: str | None = None, **parameters: Any) -> Response:
    """Send the browser to a page."""
    address = path_for(request, name, **parameters) + (f"?note={note}" if note else "")
    return JSONResponse({"location": address}) if from_script(request) else RedirectResponse(address, 303)


def refusal(request: Request, refused: Refused) -> Response:
    """Show why a request ended without a result."""
    if from_script(request):
        return JSONResponse({"message": f"{refused.title}. {refused.text}"}, refused.status)
    links = [(path_for(request, name), label) for name, label in refused.links]
    return page(
        request, "message.html", status=refused.status, heading=refused.title, text=refused.text, links=links, note=None
    )


def media_paths(request: Request, name: str, item: Any, order: Sequence[int], **parameters: Any) -> list[str | None]:
    """Return the address of the image at each position; the address names the position, not the file or the model."""
    return [
        path_for(request, name, place=place, **parameters) if item.responses[response].media else None
        for place, response in enumerate(order, 1)
    ]


def first_words(item: Any, length: int = 240) -> str:
    """Return the start of an item's last message as one line."""
    text = " ".join(item.prompt[-1].content[: 4 * length].split()) if item.prompt else ""
    return text if len(text) <= length else text[: length - 1] + "…"

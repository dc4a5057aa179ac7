"""Know who sends a request: invitation, session cookie and form token.

An invitation link holds a random token, which the annotator exchanges for a session cookie by pressing a button; a
program that previews links opens no session. The store keeps SHA-256 of both tokens, so that a copied store opens
nothing. A form carries a token derived from the session's, which another site cannot know.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from rlhf_lightning.feedback.people import SESSION_SECONDS

COOKIE = "feedback_session"
MAY = {"adjudicator": {"adjudicator", "owner"}}
"""Roles that include another one."""


class Refused(Exception):
    """End a request with an error page.

    Args:
        status: The status of the response.
        title: The page's heading.
        text: What happened and what to do.
        links: (address, label) of what to offer next.
    """

    def __init__(self, status: int, title: str, text: str, *links: tuple[str, str]):
        super().__init__(f"{status} {title}")
        self.status, self.title, self.text, self.links = status, title, text, links


def cookie_path(request: Request) -> str:
    """Return the path that the session cookie is limited to."""
    return str(request.scope.get("root_path", "")) or "/"


def set_cookie(request: Request, response: Response, session: str) -> None:
    """Put the session's token into the browser; over TLS the cookie never travels in the clear."""
    response.set_cookie(
        COOKIE,
        session,
        max_age=int(SESSION_SECONDS),
        path=cookie_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def form_token(session: str) -> str:
    """Derive the token that every form of a session carries."""
    return hmac.new(session.encode(), b"feedback form", hashlib.sha256).hexdigest()


def check_form(request: Request, form: Any) -> None:
    """Refuse a form without the token of its session.

    Raises:
        Refused: The token is missing or belongs to another session.
    """
    session = request.cookies.get(COOKIE, "")
    sent = form.get("token", "")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), form_token(session).encode()):
        raise Refused(
            403,
            "This page is out of date",
            "The form belongs to another session, so nothing was saved. Reload the page and send it again.",
            ("task", "Back to the current item"),
        )


def check_origin(request: Request) -> None:
    """Refuse a form that another site's page sent, as far as the browser says where it came from.

    Raises:
        Refused: The browser names another site.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "Sent from another site", "A page of another site sent this form, so nothing was saved.")


def annotator_of(request: Request, store: Any, role: str | None = "annotator") -> Any:
    """Return the annotator whose session the cookie names.

    Raises:
        Refused: There is no valid session (401), or the annotator lacks the role (403).
    """
    session = request.cookies.get(COOKIE, "")
    annotator = store.session(session) if session else None
    if annotator is None:
        raise Refused(
            401,
            "No open session",
            "Open your invitation link to start or to continue. If you have just followed a link to this page, "
            "reload it once. A link that no longer works can be replaced by whoever sent it.",
        )
    if role is not None:
        require_role(annotator, role)
    return annotator


def require_role(annotator: Any, role: str) -> None:
    """Refuse a page that an annotator's invitation does not cover.

    Raises:
        Refused: The annotator lacks the role.
    """
    if not annotator.roles & MAY.get(role, {role}):
        raise Refused(
            403, "Not for your role", f"This page needs the role {role}, which your invitation does not have."
        )

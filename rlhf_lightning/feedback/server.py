"""Serve the pages that people label on.

`create_app` builds the application, `serve` runs it. Everything that a request may do is in one of the lists below.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import history, pages, review
from rlhf_lightning.feedback.database import StoreUnavailableError
from rlhf_lightning.feedback.limits import SECURITY_HEADERS, BodyLimit, Prefix, SecurityHeaders, TimedH11Protocol
from rlhf_lightning.feedback.sessions import Refused
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.feedback.views import HERE, environment, refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")

ROUTES = [
    Route("/", pages.task, name="task"),
    Route("/save", pages.save, name="save", methods=["POST"]),
    Route("/undo", pages.undo, name="undo", methods=["POST"]),
    Route("/trained/{lease:int}", pages.trained, name="trained"),
    Route("/guidelines", pages.guidelines, name="guidelines"),
    Route("/media/{lease:int}/{place:int}", pages.media, name="media"),
    Route("/join/{invitation}", pages.join, name="join"),
    Route("/join/{invitation}", pages.accept, name="accept", methods=["POST"]),
    Route("/history", history.history, name="history"),
    Route("/history/{judgement:int}", history.correct, name="correct"),
    Route("/history/{judgement:int}", history.save_correction, name="save_correction", methods=["POST"]),
    Route("/history/{judgement:int}/{place:int}", history.past_media, name="past_media"),
    Route("/disputed", review.disputes, name="disputes"),
    Route("/disputed/{item:int}", review.dispute, name="dispute"),
    Route("/overview", review.overview, name="overview"),
]

HTTP_TEXTS = {
    400: ("Not a readable form", "The form is incomplete or has too many fields, so nothing was saved."),
    404: ("No such page", "There is nothing at this address."),
    405: ("Not possible here", "This address does not take that kind of request."),
    408: ("Too slow", "The form did not arrive in time, so nothing was saved. Send it again."),
    413: ("Too large", "The form is larger than this page can take, so nothing was saved. Shorten the texts."),
    500: (
        "Something went wrong",
        "The server could not answer, and nothing was saved. Whoever runs it finds why there.",
    ),
}


class CachedFiles(StaticFiles):
    """Send our own files, which browsers check on every use."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Send one file."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def create_app(store: Store, root_path: str = "") -> Starlette:
    """Build the application over a store, below the prefix that a reverse proxy shows it under."""
    app = Starlette(
        routes=[*ROUTES, Mount("/static", CachedFiles(directory=HERE / "static"), name="static")],
        middleware=[
            Middleware(Prefix, root_path=root_path),
            Middleware(SecurityHeaders),
            Middleware(BodyLimit, refuse=_too_much),
        ],
        exception_handlers={
            Refused: _refused,
            HTTPException: _http_error,
            StoreUnavailableError: _unavailable,
            Exception: _fault,
        },
    )
    app.state.store = store
    app.state.templates = environment()
    app.state.measured, app.state.measured_at = None, float("-inf")
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(request, error)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title, text = HTTP_TEXTS.get(error.status_code, HTTP_TEXTS[400])
    return refusal(request, Refused(error.status_code, title, text, ("task", "To the current item")))


def _unavailable(request: Request, error: Exception) -> Response:
    """Answer 503: the browser keeps the form and can send it again; the store's reason goes to the terminal."""
    print(f"warning: {error}", flush=True)
    title, text = (
        "Not saved",
        "The server cannot save at present, so nothing was saved. Keep this page and send it again.",
    )
    if request.method == "GET":
        title, text = (
            "Not available",
            "The server cannot read or write its store at present. Reload this page in a minute.",
        )
    try:
        response = refusal(request, Refused(503, title, text))
    except StoreUnavailableError:  # not even the page's title can be read
        response = PlainTextResponse(f"{title}. {text}", 503)
    response.headers["retry-after"] = "30"
    return response


def _fault(request: Request, error: Exception) -> Response:
    title, text = HTTP_TEXTS[500]
    response = PlainTextResponse(f"{title}. {text}", 500)
    response.raw_headers.extend(SECURITY_HEADERS)  # this answer passes no middleware
    return response


def _too_much(scope: Scope, status: int) -> Response:
    title, text = HTTP_TEXTS[status]
    return refusal(Request(scope), Refused(status, title, text))


def serve(store: Store, *, host: str = "127.0.0.1", port: int = 8080, root_path: str = "") -> None:
    """Serve a store's pages until interrupted.

    Args:
        store: The store; no other server may have it.
        host: The address to listen on; 127.0.0.1 is reached from this machine alone.
        port: The port; 0 takes a free one.
        root_path: The prefix under which a reverse proxy shows the pages, such as /feedback.

    Raises:
        UserError: Another server has the store, or the address cannot be listened on.
    """
    store.database.lock_for_serving()
    root_path = "/" + root_path.strip("/") if root_path.strip("/") else ""
    listener = _listen(host, port)
    print(f"feedback: {_address(host, listener)}{root_path}/ (stop with Ctrl-C)", flush=True)
    _warn(host)
    with listener:
        _server(store, root_path).run(sockets=[listener])


@contextlib.contextmanager
def serving(store: Store, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve a store's pages in a thread, as long as the block runs.

    Yields:
        The address of the pages, without a slash at its end.

    Raises:
        UserError: Another server has the store, or the address cannot be listened on.
    """
    store.database.lock_for_serving()
    listener = _listen(host, port)
    _warn(host)
    server = _server(store, "")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    with listener:
        thread.start()
        try:
            yield _address(host, listener)
        finally:
            server.should_exit = True
            thread.join()


def _address(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _warn(host: str) -> None:
    if host not in LOOPBACK:
        print(
            f"warning: --host is {host}, so everybody on the network reaches the pages, and without TLS reads the cookies and "
            "judgements on their way. Set --host 127.0.0.1 and use ssh -L or a reverse proxy with TLS",
            flush=True,
        )


def _server(store: Store, root_path: str) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(store, root_path),
        http=TimedH11Protocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,  # it would hold invitation links
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"--host is {host}, which is no address of this machine; set --host to 127.0.0.1, or to one of its addresses"
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"--port is {port} on {host}, which cannot be listened on ({reason}); set --port to another one"
        ) from error
    # asyncio sets this on sockets of its own making; without it each answer of two packets waits 40 ms for an acknowledgement
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener

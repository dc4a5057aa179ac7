"""Limit what one request may cost: the size of its body, the time it takes to arrive, and where a form may come from."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY_BYTES = 4 * 2**20  # five replies of 50,000 characters, percent-encoded, fit
DROPPED_BYTES = 32 * 2**20
BODY_SECONDS = 20.0
HEADER_SECONDS = 10.0

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class SecurityHeaders:
    """Add the headers of `SECURITY_HEADERS` to every response, errors included."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in message["headers"]}
                cache = [] if b"cache-control" in named else [(b"cache-control", b"no-store")]
                message = {**message, "headers": [*message["headers"], *SECURITY_HEADERS, *cache]}
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Prefix:
    """Serve the pages below a prefix, whether or not a reverse proxy takes the prefix off the paths that it passes on."""

    def __init__(self, app: ASGIApp, root_path: str):
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            path = scope["path"]
            if not f"{path}/".startswith(f"{self.root_path}/"):
                path = self.root_path + path
            scope = {**scope, "root_path": self.root_path, "path": path}
        await self.app(scope, receive, send)


class BodyLimit:
    """Read a request's whole body before the application runs; refuse one that is too large or too slow.

    Args:
        app: The application.
        refuse: Builds the response for a status of 408 or 413.
        max_bytes: The largest body in bytes, whether announced by Content-Length or sent in chunks.

    The whole body must arrive within `BODY_SECONDS`.
    """

    def __init__(self, app: ASGIApp, refuse: Any, max_bytes: int = BODY_BYTES):
        self.app, self.refuse, self.max_bytes = app, refuse, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        body = await self._body(Headers(scope=scope), receive)
        if body is None:  # the browser went away
            return
        if isinstance(body, int):
            await self._refuse(body, scope, receive, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | int | None:
        """Return the body, the status to refuse the request with, or None for a closed connection.

        A browser shows the answer only once it has sent its form, so a body somewhat over the limit is read and dropped.
        """
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes + DROPPED_BYTES:
            return 413
        chunks, size, more = [], 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more and size <= self.max_bytes + DROPPED_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    more = message.get("more_body", False)
                    if size <= self.max_bytes:
                        chunks.append(message.get("body", b""))
        except TimeoutError:
            return 408
        return b"".join(chunks) if size <= self.max_bytes else 413

    async def _refuse(self, status: int, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.refuse(scope, status)
        response.headers["connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)


class TimedH11Protocol(H11Protocol):
    """Close a connection whose request line and headers do not arrive within `HEADER_SECONDS`."""

    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer with the connection."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the timer once a request has been read; start it while one is incomplete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif not self.transport.is_closing():
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer with the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

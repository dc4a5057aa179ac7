"""An HTTP endpoint that is asked with JSON: bounded answers, retries, time limits, headers from the environment."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import IncompleteRead
from string import Template
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener, getproxies

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.retry_and_timeout import RetryLaterError, RetryPolicy, is_transient

MAX_ANSWER = 64 * 2**20
"""Bytes of an answer that are read at most; a score takes about 20."""
NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
"""Codes of an HTTP 429 that no retry turns into an answer."""
MIN_SECRET = 4
"""Characters of the shortest value that messages replace; a shorter one would replace ordinary text."""


class RefusedRequestError(UserError):
    """Report an HTTP status that a retry would get again.

    Args:
        message: the line.
        status: of HTTP.
        body: the beginning of the answer, at most 2,000 bytes.
    """

    def __init__(self, message: str, status: int, body: bytes) -> None:
        super().__init__(message)
        self.status, self.body = status, body


class Endpoint:
    """Post JSON to a URL under a retry policy.

    Args:
        owner: name of the class that asks, for messages about its arguments.
        url: an http or https URL.
        headers: of each request; `$NAME` in a value is read from the environment at every request.
        retry_policy: of one request.
        content: what the answer must consist of, for the message about one that is too long.
    """

    def __init__(
        self, owner: str, url: str, headers: Mapping[str, str], retry_policy: RetryPolicy, content: str = "scores"
    ) -> None:
        self.owner, self.url, self.headers, self.retry_policy = owner, url, headers, retry_policy
        self.content = content

    def check(self) -> None:
        """Check the form of the URL and the headers, without a request.

        Raises:
            UserError: one of them cannot be used.
        """
        if fault := _url_fault(self.url):
            shown = self.url.rpartition("@")[2]  # without a password
            raise UserError(
                f"{self.owner}.url is {shown!r}, which {fault}; set it to a URL such as http://localhost:8000/score"
            )
        self._expanded_headers()

    def post(self, request: Any) -> bytes:
        """Send one request and return the body of its answer.

        Raises:
            RefusedRequestError: the server answered with a status that a retry would get again.
            UserError: every attempt failed, or the answer is too long.
        """
        body = json.dumps(json.loads(json.dumps(request, default=str), parse_constant=str)).encode()  # JSON has no NaN
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._expanded_headers()}
        return self.retry_policy.call(lambda: self._attempt(body, headers))

    def quoted(self, text: bytes) -> str:
        """Quote the beginning of an answer on one line; a server may repeat a secret, which is replaced."""
        readable = text.decode("utf-8", "replace")
        for secret in self._secrets():
            readable = readable.replace(secret, "***")
        return repr(" ".join(readable.split())[:200])

    def _attempt(self, body: bytes, headers: dict[str, str]) -> bytes:
        """Make one attempt.

        Raises:
            OSError: the attempt failed, and a retry may succeed.
            UserError: a retry cannot succeed.
        """
        request = Request(self.url, body, headers, method="POST")
        try:
            with _opener(tuple(sorted(getproxies().items()))).open(
                request, timeout=self.retry_policy.inner_timeout
            ) as response:
                return self._read(response)
        except HTTPError as error:
            raise self._of_status(error) from None
        except URLError as error:  # a wrapper; its reason says more
            raise (error.reason if isinstance(error.reason, OSError) else error) from None
        except IncompleteRead as error:
            raise ConnectionError(f"the connection closed during the answer: {error}") from None

    def _of_status(self, error: HTTPError) -> Exception:
        with error:
            body = error.read(2000)
        status = f"HTTP {error.code} {error.reason}: {self.quoted(body)}"
        if is_transient(error) and not any(code.encode() in body for code in NO_QUOTA):
            return RetryLaterError(status, _seconds(error.headers.get("Retry-After")))
        location = error.headers.get("Location")
        moved = f" and redirects to {location}" if location else ""
        return RefusedRequestError(
            f"{self.retry_policy.name} answered {status}{moved}; fix the url, headers or server", error.code, body
        )

    def _read(self, response: Any) -> bytes:
        """Read an answer of limited size; stop with the time of the attempt, after which nobody waits for it."""
        ends = time.monotonic() + (self.retry_policy.timeout or math.inf)
        found = bytearray()
        while chunk := response.read1(65536):
            found += chunk
            if len(found) > MAX_ANSWER:
                raise UserError(
                    f"{self.retry_policy.name} answered more than {MAX_ANSWER} bytes; it must answer {self.content} alone: "
                    "fix it"
                )
            if time.monotonic() > ends:
                raise TimeoutError(f"no whole answer within {self.retry_policy.timeout:g} s")
        if response.length:  # bytes that were announced and have not come
            raise IncompleteRead(bytes(found), response.length)
        return bytes(found)

    def _expanded_headers(self) -> dict[str, str]:
        return {name: self._expand(name, value) for name, value in self.headers.items()}

    def _expand(self, name: str, value: str) -> str:
        """Replace each `$NAME` of a header by the environment variable; no message shows its value."""
        try:
            expanded = Template(value).substitute(os.environ).strip()
        except KeyError as error:
            variable = error.args[0]
            raise UserError(
                f"{self.owner}.headers.{name} contains ${variable}, which is not set; set the environment variable {variable}"
            ) from None
        except ValueError:
            raise UserError(f"{self.owner}.headers.{name} has a $ without a name; replace it by $$") from None
        if not (expanded.isascii() and expanded.isprintable()):
            raise UserError(f"{self.owner}.headers.{name} has a line break or a character outside ASCII; remove it")
        return expanded

    def _secrets(self) -> list[str]:
        """Return the values of the environment variables that the headers name."""
        names = [name for value in self.headers.values() for name in Template(value).get_identifiers()]
        values = [os.environ.get(name, "").strip() for name in names]
        return [value for value in values if len(value) >= MIN_SECRET]


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: urllib would follow with GET, without the body, and send the headers to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return no further request, so that the redirect raises HTTPError."""


@functools.lru_cache(maxsize=4)
def _opener(proxies: tuple[tuple[str, str], ...]) -> OpenerDirector:
    """Make what opens URLs, once: loading the certificates takes 30 ms. It reads `proxies` from the environment itself."""
    return build_opener(_NoRedirect)


def _url_fault(url: str) -> str | None:
    if not (url.isascii() and url.isprintable()) or " " in url:
        return "has characters that must be percent-encoded"
    try:
        address = urlsplit(url)
        valid = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError as error:
        return f"cannot be read: {error}"
    if not valid:
        return "is not of the form http://host[:port]/path or https://…"
    return "has a user name, which belongs into headers (Authorization)" if address.username is not None else None


def _seconds(value: str | None) -> float:
    """Return the seconds of a header Retry-After; 0 for a date, or without one."""
    with suppress(TypeError, ValueError):
        seconds = float(value)  # type: ignore[arg-type]
        return seconds if 0 <= seconds < math.inf else 0.0
    return 0.0

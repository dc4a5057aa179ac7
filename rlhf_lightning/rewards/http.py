"""A reward server, called over HTTP."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from http.client import IncompleteRead
from string import Template
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.retry_and_timeout import RetryPolicy, is_transient
from rlhf_lightning.types import Completions

MAX_ANSWER = 64 * 2**20
"""Bytes of an answer that are read at most; a score takes about 20."""


class ServerReward(Reward):
    """Get the scores from an HTTP server, in any language and on any machine.

    The reward posts `{"prompts": [...], "responses": [...], "columns": {name: [...]}}` with all columns of the data set. Values
    that JSON lacks are sent as their text. The server answers `{"scores": [...]}`: a number for each response, or null for one
    that it cannot score. Each process of a run sends its own rows.

    A timeout, a failed connection and the HTTP statuses 408, 425, 429 and 5xx are retried. Any other status, a redirection
    included, stops the run.

    Args:
        url: an http or https URL.
        headers: headers of each request. `$NAME` in a value is read from the environment and is in no saved config, as in
            `Authorization: Bearer $REWARD_TOKEN`. `$$` is a dollar sign.
        batch_size: most responses per request; by default all.
        timeout: seconds for one request; null for no limit.
        retries: further attempts after the first.
        backoff: seconds before the first retry, doubled before each further one, up to a minute.
    """

    scores_while_generating = True

    def __init__(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        batch_size: int | None = None,
        timeout: float | None = 60.0,
        retries: int = 5,
        backoff: float = 2.0,
    ) -> None:
        self.url, self.headers, self.batch_size = url, headers or {}, batch_size
        self.retry_policy = RetryPolicy(f"reward ServerReward {url}", timeout, retries, backoff)

    def check(self) -> None:
        """Check the form of the URL and the headers. The server gets no request, as it may start later."""
        if fault := _url_fault(self.url):
            shown = self.url.rpartition("@")[2]  # without a password
            raise UserError(
                f"ServerReward.url is {shown!r}, which {fault}; set it to a URL such as http://localhost:8000/score"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(
                f"ServerReward.batch_size is {self.batch_size}; set it to 1 or more, or to null for no limit"
            )
        self._expanded_headers()

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """Return the server's scores, in the order of the completions.

        Raises:
            UserError: all attempts failed, the server refused the request, or its answer has the wrong form.
        """
        scores: list[float | None] = []
        size = self.batch_size or len(completions) or 1
        for start in range(0, len(completions), size):
            rows = slice(start, start + size)
            request = {
                "prompts": completions.prompts[rows],
                "responses": completions.responses[rows],
                "columns": {name: values[rows] for name, values in completions.columns.items()},
            }
            scores += self._scores(request)
        return scores

    def _scores(self, request: dict[str, Any]) -> list[float | None]:
        count = len(request["responses"])
        body = json.dumps(json.loads(json.dumps(request, default=str), parse_constant=str)).encode()  # JSON has no NaN
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._expanded_headers()}
        text = self.retry_policy.call(lambda: self._post(body, headers))
        try:
            answer = json.loads(text)
        except ValueError:
            raise UserError(f"{self.retry_policy.name} answered {_beginning(text)}, which is not JSON") from None
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != count:
            answered = f"{len(scores)} scores" if isinstance(scores, list) else _beginning(text)
            raise UserError(
                f'{self.retry_policy.name} answered {answered}; it must answer {{"scores": [{count} numbers or nulls]}}'
            )
        return scores

    def _post(self, body: bytes, headers: dict[str, str]) -> bytes:
        """Make one attempt.

        Raises:
            OSError: the attempt failed, and a retry may succeed.
            UserError: a retry cannot succeed.
        """
        request = Request(self.url, body, headers, method="POST")
        try:
            with build_opener(_NoRedirect).open(request, timeout=self.retry_policy.inner_timeout) as response:
                return self._read(response)
        except HTTPError as error:
            with error:
                status = f"HTTP {error.code} {error.reason}: {_beginning(error.read(2000))}"
            if is_transient(error):
                raise ConnectionError(status) from None
            location = error.headers.get("Location")
            moved = f" and redirects to {location}" if location else ""
            raise UserError(
                f"{self.retry_policy.name} answered {status}{moved}; fix the url, headers or server"
            ) from None
        except URLError as error:  # a wrapper; its reason says more
            raise (error.reason if isinstance(error.reason, OSError) else error) from None
        except IncompleteRead as error:
            raise ConnectionError(f"the connection closed during the answer: {error}") from None

    def _read(self, response: Any) -> bytes:
        """Read an answer of limited size; stop with the time of the attempt, after which nobody waits for it."""
        ends = time.monotonic() + (self.retry_policy.timeout or math.inf)
        found = bytearray()
        while chunk := response.read1(65536):
            found += chunk
            if len(found) > MAX_ANSWER:
                raise UserError(
                    f"{self.retry_policy.name} answered more than {MAX_ANSWER} bytes; it must answer scores alone: fix it"
                )
            if time.monotonic() > ends:
                raise TimeoutError(f"no whole answer within {self.retry_policy.timeout:g} s")
        if response.length:  # bytes that were announced and have not come
            raise IncompleteRead(bytes(found), response.length)
        return bytes(found)

    def _expanded_headers(self) -> dict[str, str]:
        return {name: _expand(name, value) for name, value in self.headers.items()}


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: urllib would follow with GET, without the body, and send the headers to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return no further request, so that the redirect raises HTTPError."""


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


def _expand(name: str, value: str) -> str:
    """Replace each `$NAME` of a header by the environment variable; no message shows its value."""
    try:
        expanded = Template(value).substitute(os.environ).strip()
    except KeyError as error:
        variable = error.args[0]
        raise UserError(
            f"ServerReward.headers.{name} contains ${variable}, which is not set; set the environment variable {variable}"
        ) from None
    except ValueError:
        raise UserError(f"ServerReward.headers.{name} has a $ without a name; replace it by $$") from None
    if not (expanded.isascii() and expanded.isprintable()):
        raise UserError(f"ServerReward.headers.{name} has a line break or a character outside ASCII; remove it")
    return expanded


def _beginning(text: bytes) -> str:
    return repr(" ".join(text.decode("utf-8", "replace").split())[:200])

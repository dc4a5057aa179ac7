"""A reward that a server gives, asked over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from http.client import IncompleteRead
from string import Template
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.retry import RetryPolicy, is_transient
from rlhf_lightning.types import Completions


class ServerReward(Reward):
    """Ask a server for the scores: a program of your own, in whatever language, on whatever machine.

    It is sent, by POST, `{"prompts": [...], "responses": [...], "columns": {name: [...]}}`, with all columns of the data set,
    values that JSON lacks as their text. It answers `{"scores": [...]}`: a number for each response, or null for one that it
    cannot score. Each process of a run asks for its own rows.

    No answer in time, a connection that fails and the HTTP statuses 408, 425, 429 and 5xx are tried again; any other status,
    a redirection included, stops the run.

    Args:
        url: http or https.
        headers: sent with each request; `$NAME` in a value is read from the environment and is in no saved config, as in
            `Authorization: Bearer $REWARD_TOKEN`. `$$` is the sign itself.
        batch_size: responses sent in one request, at most; by default all that there are.
        timeout: seconds for one request; null for no limit.
        retries: further attempts at a request.
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
        self.patience = RetryPolicy(f"reward ServerReward {url}", timeout, retries, backoff)

    def check(self) -> None:
        """The url has the form of one, and the headers can be filled in; the server is not asked, it may start later."""
        if fault := _fault_of(self.url):
            shown = self.url.rpartition("@")[2]  # without a password
            raise UserError(f"ServerReward.url {shown!r} {fault}; give one such as http://localhost:8000/score")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"ServerReward.batch_size is {self.batch_size}; give at least 1, or null for no limit")
        self._filled_headers()

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """The server's scores, in the order of the completions.

        Raises:
            UserError: there was no answer in all attempts, the request was refused, or the answer has not the right form.
        """
        scores: list[float | None] = []
        size = self.batch_size or len(completions) or 1
        for start in range(0, len(completions), size):
            rows = slice(start, start + size)
            sent = {
                "prompts": completions.prompts[rows],
                "responses": completions.responses[rows],
                "columns": {name: values[rows] for name, values in completions.columns.items()},
            }
            scores += self._scores(sent)
        return scores

    def _scores(self, sent: dict[str, Any]) -> list[float | None]:
        count = len(sent["responses"])
        body = json.dumps(json.loads(json.dumps(sent, default=str), parse_constant=str)).encode()  # NaN is no JSON
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._filled_headers()}
        text = self.patience.ask(lambda: self._post(body, headers))
        try:
            answer = json.loads(text)
        except ValueError:
            raise UserError(f"{self.patience.name} answered what is not JSON: {_beginning(text)}") from None
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != count:
            found = f"{len(scores)} scores" if isinstance(scores, list) else _beginning(text)
            raise UserError(
                f'{self.patience.name} answered {found}; {{"scores": [{count} numbers or nulls]}} is needed'
            )
        return scores

    def _post(self, body: bytes, headers: dict[str, str]) -> bytes:
        """One attempt; raises OSError where another may succeed."""
        request = Request(self.url, body, headers, method="POST")
        try:
            with build_opener(_NoRedirection).open(request, timeout=self.patience.own_limit) as response:
                return response.read()
        except HTTPError as error:
            with error:
                said = f"HTTP {error.code} {error.reason}: {_beginning(error.read(2000))}"
            if is_transient(error):
                raise ConnectionError(said) from None
            moved = f", which has moved to {place}" if (place := error.headers.get("Location")) else ""
            raise UserError(f"{self.patience.name}{moved} answered {said}; mend the url, headers or server") from None
        except URLError as error:  # a wrapper, of which the reason says more
            raise (error.reason if isinstance(error.reason, OSError) else error) from None
        except IncompleteRead as error:
            raise ConnectionError(f"the connection ended in the middle of the answer: {error}") from None

    def _filled_headers(self) -> dict[str, str]:
        return {name: _filled(name, value) for name, value in self.headers.items()}


class _NoRedirection(HTTPRedirectHandler):
    """urllib would go on with GET, without the body, and would show the headers to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """No further request: the redirection is an HTTPError."""


def _fault_of(url: str) -> str | None:
    if not (url.isascii() and url.isprintable()) or " " in url:
        return "has characters that must be quoted with %"
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        return f"cannot be read: {error}"
    if not named:
        return "is not of the form http://host[:port]/path or https://…"
    return "holds a user name; put it into headers (Authorization)" if parts.username is not None else None


def _filled(name: str, value: str) -> str:
    """A header with its `$NAME`s filled in from the environment; a message never shows what stood there."""
    try:
        filled = Template(value).substitute(os.environ).strip()
    except KeyError as error:
        missing = error.args[0]
        raise UserError(f"ServerReward.headers: {name} is to hold ${missing}, which the environment lacks") from None
    except ValueError:
        raise UserError(f"ServerReward.headers: {name} has a $ without a name behind it; write $$ for a $") from None
    if not (filled.isascii() and filled.isprintable()):
        raise UserError(f"ServerReward.headers: {name} has a line break or a character that is not ASCII")
    return filled


def _beginning(text: bytes) -> str:
    return repr(" ".join(text.decode("utf-8", "replace").split())[:200])

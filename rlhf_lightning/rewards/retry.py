"""How long a reward is waited for, and how often it is asked again when it fails for a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Thread
from typing import TypeVar
from urllib.error import HTTPError

import torch

from rlhf_lightning.errors import UserError

AnswerT = TypeVar("AnswerT")

LONGEST_WAIT = 60.0
"""Seconds; waits between attempts double up to here."""
LASTING = (
    ValueError,  # what is an OSError as well is a wrong argument or certificate: ssl.SSLCertVerificationError
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Kinds of `OSError` that the next attempt would meet again."""


@dataclass(frozen=True)
class RetryPolicy:
    """Asks what may fail for a while: a time limit for each attempt, and further attempts with exponential back-off.

    Only what may pass is tried again: `TimeoutError` and `OSError` (so `ConnectionError`, but no missing file and no HTTP
    status that says that the request is at fault). Anything else, `KeyboardInterrupt` included, is raised at once.

    Raises:
        UserError: a number cannot be meant.
    """

    name: str
    """What is asked, for messages."""
    timeout: float | None = None
    """Seconds for one attempt; None waits for ever."""
    retries: int = 0
    """Attempts after the first."""
    backoff: float = 2.0
    """Seconds before the first retry; doubled before each further one, up to a minute."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UserError(f"{self.name}: timeout is {self.timeout}; give seconds above 0, or null for no limit")
        if self.retries < 0:
            raise UserError(f"{self.name}: retries is {self.retries}; give 0 or more attempts after the first")
        if not 0 <= self.backoff <= LONGEST_WAIT:
            raise UserError(f"{self.name}: backoff is {self.backoff}; give seconds from 0 to {LONGEST_WAIT:g}")

    @property
    def own_limit(self) -> float | None:
        """Seconds after which a socket or a coroutine may end by itself: shortly after `ask` has given it up."""
        return None if self.timeout is None else self.timeout + 0.5

    def ask(self, call: Callable[[], AnswerT]) -> AnswerT:
        """The answer of `call`, asked again while it fails in a way that may pass; each retry prints a line.

        Raises:
            UserError: it failed in every attempt; names the last failure, the number of attempts and the time they took.
        """
        started, attempt = time.monotonic(), 1
        while True:
            try:
                return call_with_timeout(self.timeout, call)
            except Exception as error:
                if not is_transient(error):
                    raise
                if attempt > self.retries:
                    raise UserError(self._given_up(error, time.monotonic() - started)) from error
                pause = self._pause(attempt)
                told = (
                    f"attempt {attempt} of {self.retries + 1} failed ({short_description(error)}); again in {pause:g} s"
                )
            print(f"{self.name}: {told}", flush=True)
            time.sleep(pause)
            attempt += 1

    def _pause(self, attempt: int) -> float:
        return min(self.backoff * 2.0 ** min(attempt - 1, 100), LONGEST_WAIT)  # 2.0 ** 1024 overflows

    def _given_up(self, error: Exception, seconds: float) -> str:
        tried = f"{self.retries + 1} attempts in {seconds:.1f} s failed, the last" if self.retries else "failed"
        limit = "null" if self.timeout is None else f"{self.timeout:g}"
        return (
            f"{self.name}: {tried} with {short_description(error)}; see that it works again, or wait longer with "
            f"timeout (now {limit}), retries (now {self.retries}) or backoff (now {self.backoff:g})"
        )


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed a little later.

    >>> is_transient(ConnectionResetError()), is_transient(FileNotFoundError()), is_transient(KeyError("column"))
    (True, False, False)
    """
    if isinstance(error, HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    return isinstance(error, OSError) and not isinstance(error, LASTING)


def short_description(error: BaseException) -> str:
    """Kind and text of an error, on one line of at most some 200 characters.

    >>> short_description(TimeoutError()), short_description(OSError("no\\nroute"))
    ('TimeoutError', 'OSError: no route')
    """
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def call_with_timeout(limit: float | None, call: Callable[[], AnswerT]) -> AnswerT:
    """The answer of `call`, waited for `limit` seconds in a thread of its own; without a limit it is called here.

    Python cannot stop a thread. One that takes too long is abandoned, not ended: it is a daemon, so it does not keep the
    process from leaving, but until then it goes on, and a second attempt runs beside it. (Signals, which could end it, belong
    to the main thread, and Lightning uses them.)

    Raises:
        TimeoutError: there was no answer in time.
    """
    if limit is None:
        return call()
    answer: Future[AnswerT] = Future()
    # Both are settings of a thread, and a new one has gradients on and the first GPU. (Autocast is off in it.)
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
    Thread(target=_answer, args=(answer, call, torch.is_grad_enabled(), device), daemon=True).start()
    if not wait([answer], limit).done:
        raise TimeoutError(f"no answer within {limit:g} s")
    return answer.result()


def _answer(answer: Future[AnswerT], call: Callable[[], AnswerT], gradient: bool, device: int) -> None:
    try:
        with torch.set_grad_enabled(gradient), torch.cuda.device(device):
            answer.set_result(call())
    except BaseException as error:  # raised again by who waits
        answer.set_exception(error)

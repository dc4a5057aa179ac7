"""Retries and timeouts of calls that may fail for a while."""

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

from rlhf_lightning.errors import UserError, printable, text_of

ResultT = TypeVar("ResultT")

MAX_BACKOFF = 60.0
"""Seconds; the pause between attempts doubles up to this."""
PERMANENT_ERRORS = (
    ValueError,  # some ValueErrors are OSErrors too, such as ssl.SSLCertVerificationError
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Kinds of `OSError` that a retry would raise again."""


class RetryLaterError(ConnectionError):
    """Report a failure that a retry may fix, not sooner than after some seconds.

    Args:
        message: what failed.
        seconds: that the callee asked for; 0 without any.
    """

    def __init__(self, message: str, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


def _print(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class RetryPolicy:
    """Calls a function with a time limit per attempt, and retries transient failures with exponential back-off.

    Only transient errors are retried: `TimeoutError` and `OSError`, such as `ConnectionError`. A missing file and an HTTP status
    that blames the request are not. Any other error, `KeyboardInterrupt` included, is raised at once.

    Raises:
        UserError: a number is out of range.
    """

    name: str
    """Name of the callee, for messages."""
    timeout: float | None = None
    """Seconds for one attempt; None: no limit."""
    retries: int = 0
    """Attempts after the first."""
    backoff: float = 2.0
    """Seconds before the first retry; doubled before each further one, up to a minute. A server may ask for a longer pause."""
    report: Callable[[str], None] = _print
    """Gets the line per retry."""

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UserError(
                f"{self.name}: timeout is {self.timeout}; set it to seconds above 0, or to null for no limit"
            )
        if self.retries < 0:
            raise UserError(f"{self.name}: retries is {self.retries}; set it to 0 or more")
        if not 0 <= self.backoff <= MAX_BACKOFF:
            raise UserError(f"{self.name}: backoff is {self.backoff}; set it to seconds from 0 to {MAX_BACKOFF:g}")

    @property
    def inner_timeout(self) -> float | None:
        """Return a limit for the callee's own timeout (of a socket, a coroutine), shortly after that of `call`."""
        return None if self.timeout is None else self.timeout + 0.5

    def call(self, function: Callable[[], ResultT]) -> ResultT:
        """Call `function` until it succeeds or the retries are used up; print a line per retry.

        Raises:
            UserError: every attempt failed. The message has the last error, the number of attempts and their time.
        """
        started, attempt = time.monotonic(), 1
        while True:
            try:
                return call_with_timeout(self.timeout, function)
            except Exception as error:
                if not is_transient(error):
                    raise
                if attempt > self.retries:
                    raise UserError(self._failure(error, time.monotonic() - started)) from error
                pause = self._pause(attempt, error)
                reason = _reason(error)
            self.report(
                f"{self.name}: attempt {attempt} of {self.retries + 1} failed ({printable(reason)}); retrying in {pause:g} s"
            )
            time.sleep(pause)
            attempt += 1

    def _pause(self, attempt: int, error: Exception | None = None) -> float:
        doubled = self.backoff * 2.0 ** min(attempt - 1, 100)  # 2.0 ** 1024 would overflow
        requested = error.seconds if isinstance(error, RetryLaterError) else 0.0
        return min(max(doubled, requested), MAX_BACKOFF)

    def _failure(self, error: Exception, seconds: float) -> str:
        attempts = f"{self.retries + 1} attempts in {seconds:.1f} s failed, the last" if self.retries else "failed"
        timeout = "null" if self.timeout is None else f"{self.timeout:g}"
        return (
            f"{self.name}: {attempts} with {_reason(error)}; fix it, or increase timeout (now {timeout}), "
            f"retries (now {self.retries}) or backoff (now {self.backoff:g})"
        )


def is_transient(error: Exception) -> bool:
    """Return whether the same call may succeed a little later.

    >>> is_transient(ConnectionResetError()), is_transient(FileNotFoundError()), is_transient(KeyError("column"))
    (True, False, False)
    """
    if isinstance(error, HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    return isinstance(error, OSError) and not isinstance(error, PERMANENT_ERRORS)


def short_description(error: BaseException) -> str:
    """Return the type and text of an error on one line of about 200 characters or less.

    >>> short_description(TimeoutError()), short_description(OSError("no\\nroute"))
    ('TimeoutError', 'OSError: no route')
    """
    text = text_of(error)[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _reason(error: Exception) -> str:
    """Describe a failure; `RetryLaterError` is a name of this package that says nothing to a user."""
    return short_description(ConnectionError(*error.args) if isinstance(error, RetryLaterError) else error)


def call_with_timeout(timeout: float | None, function: Callable[[], ResultT]) -> ResultT:
    """Call `function` in another thread and wait `timeout` seconds for its result; without a timeout call it directly.

    Python cannot stop a thread. A function that takes longer continues in a daemon thread until it returns or the process
    ends, and a retry runs beside it. Signals could stop it, but they belong to the main thread, and Lightning uses them.

    Raises:
        TimeoutError: the function has not returned in time.
    """
    if timeout is None:
        return function()
    result: Future[ResultT] = Future()
    # gradient mode and CUDA device are per thread: a new thread has gradients on, and the first GPU (autocast is off)
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
    Thread(target=_run, args=(result, function, torch.is_grad_enabled(), device), daemon=True).start()
    if not wait([result], timeout).done:
        raise TimeoutError(f"no answer within {timeout:g} s")
    return result.result()


def _run(result: Future[ResultT], function: Callable[[], ResultT], gradient: bool, device: int) -> None:
    try:
        with torch.set_grad_enabled(gradient), torch.cuda.device(device):
            result.set_result(function())
    except BaseException as error:  # the waiting thread raises it
        result.set_exception(error)

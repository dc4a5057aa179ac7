"""A time limit for Python code of a file, such as a chat template: an exception is raised in the thread that runs it."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 0.25
"""Seconds between two looks at the clock."""


class TookTooLongError(Exception):
    """Report that code ran longer than its limit."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the Python code of the block once it has run longer; a call into C is interrupted when it returns.

    Signals could do this in the main thread alone, where Lightning uses them.

    Raises:
        TookTooLongError: it has.
    """
    watch = _watch()
    watch.add(seconds)
    try:
        yield
    finally:
        watch.remove()


class _Watch:
    """A thread that interrupts others; it runs while there is something to watch."""

    def __init__(self) -> None:
        self.pid, self.lock, self.deadlines = os.getpid(), threading.Lock(), dict[int, float]()
        self.thread: threading.Thread | None = None

    def add(self, seconds: float) -> None:
        with self.lock:
            self.deadlines[threading.get_ident()] = time.monotonic() + seconds
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True)
                self.thread.start()

    def remove(self) -> None:
        with self.lock:
            self.deadlines.pop(threading.get_ident(), None)

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(INTERVAL)
            now = time.monotonic()
            with self.lock:
                for ident in [ident for ident, deadline in self.deadlines.items() if deadline < now]:
                    del self.deadlines[ident]
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(ident), ctypes.py_object(TookTooLongError)
                    )
                idle_since = now if self.deadlines else idle_since
                if now - idle_since > 2:
                    self.thread = None
                    return


_watches: list[_Watch] = []


def _watch() -> _Watch:
    """Return the watch of this process; that of a parent has no thread here."""
    if not _watches or _watches[-1].pid != os.getpid():
        _watches.append(_Watch())
    return _watches[-1]

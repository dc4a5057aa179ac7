"""Work that loads a model, in a process of its own: its memory, an accelerator's too, is free again afterwards."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")


def isolated(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of a module in a new process and return its result.

    Raises:
        Exception: whatever the function raised.
        RuntimeError: the process ended without a result.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a process that loads a model ended with status {process.exitcode}") from None
    finally:
        process.terminate()
        process.join()
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _call(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    try:
        sender.send((function(*arguments), None))
    except Exception as error:
        sender.send((None, error))

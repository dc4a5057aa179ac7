"""What a user can fix, found in the errors that a run raised."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_lightning.errors import UserError, shown, text_of

CLASS_FAULT = r"Problem with given class_path '([^']+)': (.+?)(?: Requirement '| - |$)"


def user_error(error: BaseException) -> UserError | None:
    """Find the error that a user can fix, also inside the error that jsonargparse or Lightning raised from it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return cause
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}")
    found = re.search(CLASS_FAULT, text_of(error)) if isinstance(error, Exception) else None
    return UserError(f"{found[1]} cannot be made: {found[2]}") if found else None


def raised_by(error: BaseException, package: str) -> bool:
    """Say whether code of a package raised an error, rather than code that it called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and f"/{package}/" in frames[-1].filename.replace("\\", "/")


class ParserEnd(SystemExit):
    """End the process after help or a printed config."""


@contextmanager
def no_exit() -> Iterator[None]:
    """Refuse `sys.exit` in code that a config names: the run would end with its status, 0 for instance, and without a word.

    Raises:
        UserError: naming the line of the call.
    """
    try:
        yield
    except SystemExit as end:
        if isinstance(end, ParserEnd) or is_stop(end):
            raise
        place = next(iter(reversed(traceback.extract_tb(end.__traceback__))), None)
        where = f"{place.filename}:{place.lineno}" if place else "a plug-in"
        raise UserError(
            f"{where} ended the run with sys.exit({'' if end.code is None else shown(end.code)}); raise an error that says "
            "what is wrong instead"
        ) from end


def is_stop(end: SystemExit) -> bool:
    """Say whether Lightning ended the run for an interruption or SIGTERM."""
    return isinstance(end.__context__, KeyboardInterrupt) or type(end).__name__ == "SIGTERMException"

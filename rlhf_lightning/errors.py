"""Define the error that a user can fix, and find the nearest valid name for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Report bad input in one clear line, which the command line prints without a traceback.

    The line names the file, row or key, the value found there, why it is refused, and the value to set instead.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """Format the end of a message about an unknown name: `did you mean 'x'?`, or the list of valid names.

    >>> nearest("tempreature", ["temperature", "epochs"])
    "did you mean 'temperature'?"
    >>> nearest("name", ["name_or_path", "lame"])
    "did you mean 'name_or_path'?"
    >>> nearest("laro", ["lora", "dtype"])
    "did you mean 'lora'?"
    >>> nearest("zzz", ["b", "a"])
    'expected one of: a, b'
    """
    valid = sorted(options)
    # a truncated name: take the shortest option that it begins
    completed = [option for option in valid if len(name) > 1 and option.startswith(name)]
    close = [min(completed, key=len)] if completed else difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    close = close or [option for option in valid if sorted(option) == sorted(name)]  # swapped letters
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(valid)}"

"""Faults that a user can mend, each in one clear line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was given, why it cannot work, what to do instead, and where; the command line prints it without a traceback."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of a message about an unknown name: `, did you mean 'x'?`, or the names there are.

    >>> nearest("tempreature", ["temperature", "epochs"])
    "did you mean 'temperature'?"
    >>> nearest("name", ["name_or_path", "lame"])
    "did you mean 'name_or_path'?"
    >>> nearest("laro", ["lora", "dtype"])
    "did you mean 'lora'?"
    >>> nearest("zzz", ["b", "a"])
    'expected one of: a, b'
    """
    known = sorted(options)
    # cut short: the shortest that goes on
    begun = [other for other in known if len(name) > 1 and other.startswith(name)]
    close = [min(begun, key=len)] if begun else difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or [other for other in known if sorted(other) == sorted(name)]  # letters that changed places
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known)}"

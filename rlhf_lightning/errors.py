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
    >>> nearest("zzz", ["b", "a"])
    'expected one of: a, b'
    """
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known)}"

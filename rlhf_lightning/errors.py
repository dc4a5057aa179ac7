"""Define the error that a user can fix, and find the nearest valid name for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Report bad input in one clear line, which the command line prints without a traceback.

    The line names the file, row or key, the value found there, why it is refused, and the value to set instead.
    """

    on_all_ranks = False
    """Every rank raises an error at this point, so that all of them may still communicate, for example to save a checkpoint."""


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
    valid, name = sorted(options), name[:100]  # longer names take difflib minutes
    # a truncated name: take the shortest option that it begins
    completed = [option for option in valid if len(name) > 1 and option.startswith(name)]
    close = [min(completed, key=len)] if completed else difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    close = close or [option for option in valid if sorted(option) == sorted(name)]  # swapped letters
    return f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(valid)}"


MAX_SEED = 2**32 - 1
"""The largest seed that Python, NumPy and PyTorch all take."""


def check_seed(key: str, seed: object) -> None:
    """Refuse a seed that a random generator does not take.

    Raises:
        UserError: it is negative or too large.
    """
    if isinstance(seed, int) and not 0 <= seed <= MAX_SEED:
        raise UserError(f"{key} is {seed}; set it to a number from 0 to {MAX_SEED}")


LONGEST_WORD = 200
LONGEST_LINE = 1500


def printable(text: str) -> str:
    """Escape what a terminal would act on or cannot show: control characters, text direction marks, lone surrogates.

    >>> print(printable("a\\x1b[31mb\\udcff é"))
    a\\x1b[31mb\\udcff é
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def printable_lines(text: str) -> str:
    """Escape as `printable` does, line by line.

    >>> print(printable_lines("a\\nb\\x07"))
    a
    b\\x07
    """
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def one_line(text: str, limit: int = LONGEST_LINE) -> str:
    """Put a message on one printable line of limited length; words of thousands of letters are shortened.

    >>> one_line("no\\n route \\x07"), len(one_line("9" * 5000))
    ('no route \\\\x07', 219)
    """
    words = (
        word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}… ({len(word)} characters)"
        for word in text.split()
    )
    line = printable(" ".join(words))
    return line if len(line) <= limit else f"{line[:limit]}… ({len(line)} characters)"


def shown(value: object, limit: int = 200) -> str:
    """Return the repr of any value for a message, shortened; a value whose repr fails is named by its type.

    >>> shown(3), shown("a" * 500, 5)
    ('3', "'aaaa…")
    """
    try:
        text = repr(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a repr of the user's may even exit
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def text_of(error: BaseException) -> str:
    """Return the text of an error on one line; of an error whose text cannot be formed, its type.

    >>> text_of(ValueError("a\\nb"))
    'a b'
    """
    try:
        return one_line(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as inner:
        return f"a {type(error).__name__} whose text raises {type(inner).__name__}"

"""Property-based tests of what a user gives: whatever it is, it ends in a result or in one clear line.

`outcome` runs an action and tells the two apart; anything else fails the test. `budget` says how many examples a test takes:
1,000 files and 500 configs and command lines in `make test`, twenty and ten times as many with FUZZ=nightly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rlhf_lightning.errors import UserError

NIGHTLY = os.environ.get("FUZZ") == "nightly"
SCALE = 20
LONGEST_LINE = 2000


@dataclass(frozen=True)
class Outcome:
    """What an action gave, or the line that refused it."""

    value: Any = None
    refusal: str | None = None


def budget(examples: int, scale: int = SCALE) -> Callable[[Any], Any]:
    """Settings of a test that takes so many examples in `make test`, and `scale` times as many with FUZZ=nightly."""
    return settings(
        max_examples=examples * (scale if NIGHTLY else 1),
        deadline=None,
        derandomize=not NIGHTLY,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


def outcome(action: Callable[[], Any], named: tuple[str, ...] = ()) -> Outcome:
    """Run an action that may refuse what it was given.

    Args:
        action: any other exception than UserError fails the test, as it would be a traceback.
        named: texts of which a refusal holds at least one, such as the name of the file.
    """
    try:
        return Outcome(action())
    except UserError as error:
        line = str(error)
        assert line.strip(), "refused without a word"
        assert "\n" not in line, f"more than one line: {line!r}"
        assert len(line) < LONGEST_LINE, f"a line of {len(line)} letters"
        assert not named or any(name in line for name in named), f"names none of {named}: {line}"
        return Outcome(refusal=line)


TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "NA", "00501", "\ud800", "\x00", "\u05d0", "[]", '[{"role": 1}]']
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
"""Any value that JSON has."""


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with up to three faults: some lost, some inserted, some changed."""
    found = bytearray(content)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(found)))
        kind = draw(st.sampled_from(["lose", "insert", "change", "end"]))
        if kind == "insert":
            found[place:place] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "end":
            del found[place:]
        elif kind == "lose":
            del found[place : place + draw(st.integers(1, 5))]
        elif place < len(found):
            found[place] = draw(st.integers(0, 255))
    return bytes(found)

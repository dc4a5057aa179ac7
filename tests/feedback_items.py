"""Items of a feedback store, and a clock, for tests."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.feedback.items import NewItem, NewResponse


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def pair(number: int, wanted: int = 1, **more: Any) -> NewItem:
    """Make a pair whose first response, of model a, is the shorter one."""
    responses = (NewResponse(f"first {number}", "model a"), NewResponse(f"second, longer {number}", "model b"))
    return NewItem("pair", f"prompt {number}", responses, wanted=wanted, **more)

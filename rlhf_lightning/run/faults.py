"""jsonargparse's reports, which can run to pages, as one line with the nearest valid name."""

from __future__ import annotations

import re
from typing import Any

from rlhf_lightning.errors import nearest


def readable(parser: Any, message: str) -> str:
    """The innermost fault of a report; a name that is not known comes with the nearest one that is."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    for pattern, explain in EXPLAINED:
        found = re.search(pattern, text)
        if found:
            return explain(parser, *found.groups())
    return text[:400]


def _unknown_key(parser: Any, *groups: str) -> str:
    return f"unknown key {groups[0]}"


EXPLAINED: list[Any] = []
__all__ = ["nearest", "readable"]

"""What a store's owner chooses: kept in the store, so that every server of it asks alike."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

REASONS = ("more correct", "more helpful", "safer", "clearer", "follows the instructions")


@dataclass(frozen=True)
class Settings:
    """Options of `feedback ask` and `feedback serve`."""

    title: str = "Which response is better?"
    """Heading of the page."""
    minimum_seconds: float = 0.0
    """A judgement that comes sooner after the item was shown is refused."""
    lease_seconds: float = 1800.0
    """How long an item is kept for an annotator who does not answer."""
    judgements_per_item: int = 1
    """Judgements of different annotators that settle an item, where they agree; of items that are added from now on."""
    gold_share: float = 0.1
    """Share of gold items among those that an annotator is asked, as long as there are gold items left."""
    strength: bool = False
    """Ask how much better the better response of a pair is."""
    reasons: tuple[str, ...] = REASONS
    """Reasons to choose from."""
    criteria: tuple[str, ...] = ("helpful", "harmless", "honest")
    """Of a rating; of items that are added from now on."""
    seed: int | None = None
    """What chance decides for annotators is a function of this seed and of the questions before; None: of nothing."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: a value is outside its range.
        """
        if self.judgements_per_item < 1:
            raise UserError(f"judgements per item is {self.judgements_per_item}; set it to at least 1")
        if not 0 <= self.gold_share < 1:
            raise UserError(f"gold share is {self.gold_share}; set it to at least 0 and below 1")
        if not 0 <= self.minimum_seconds < math.inf:
            raise UserError(f"minimum seconds is {self.minimum_seconds}; set it to at least 0")
        if not max(1.0, 2 * self.minimum_seconds) <= self.lease_seconds < math.inf:
            raise UserError(
                f"lease seconds is {self.lease_seconds}; an annotator needs at least a second, and twice the minimum of "
                f"{self.minimum_seconds}: set a longer lease"
            )
        if not self.title.strip():
            raise UserError("title is empty; set it to the heading of the page")
        for what, names in (("criteria", self.criteria), ("reasons", self.reasons)):
            if len({name.strip() for name in names} - {""}) < len(names):
                found = ", ".join(name.strip() or repr(name) for name in names)
                raise UserError(f"{what} are {found}; give each a name of its own")
        if not self.criteria:
            raise UserError("criteria are empty; name at least one")


def read_settings(connection: sqlite3.Connection) -> Settings:
    """Read the settings; a store without any has the defaults."""
    row = connection.execute("SELECT value FROM settings WHERE name = 'settings'").fetchone()
    stored: dict[str, Any] = {} if row is None else json.loads(row["value"])
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
    return Settings(**values)


def write_settings(connection: sqlite3.Connection, settings: Settings) -> None:
    """Replace the settings."""
    text = json.dumps(dataclasses.asdict(settings))
    connection.execute("INSERT OR REPLACE INTO settings VALUES ('settings', ?)", (text,))


def read_guidelines(path: Path) -> str:
    """Read a file of guidelines.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"guidelines {path} cannot be read: {reason}") from error

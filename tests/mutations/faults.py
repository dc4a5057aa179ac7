"""The faults of `faults.yaml`, and their places in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from patterns import Change, Source

ROOT = Path(__file__).parents[2]
SEARCHED = ("rlhf_lightning", "callbacks")
"""Folders of the repository in which a fault has its place."""


@dataclass(frozen=True)
class Fault:
    """A change that makes the package wrong, and the tests that fail with it."""

    group: str
    """Its topic."""
    name: str
    change: Change
    tests: tuple[str, ...]
    """Files or node ids."""

    def __str__(self) -> str:
        return f"{self.group}: {self.name}"

    def put_into(self, sources: list[Source]) -> tuple[Path, str]:
        """Return the file that has the place of the fault, and its text with the fault.

        Raises:
            ValueError: The package does not have exactly one such place, or the fault is not Python.
        """
        try:
            places = self.change.places(sources)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from error
        if len(places) != 1:
            files = "".join(f", {path}:{line}" for path, line, _ in places[:5])
            raise ValueError(f"{self}: {self.change.pattern!r} is found {len(places)} times, not once{files}")
        ((path, _, text),) = places
        return path, text


def read_faults() -> list[Fault]:
    """Read `faults.yaml`."""
    groups = yaml.safe_load(Path(__file__).with_name("faults.yaml").read_text())
    return [_fault(group, one) for group in groups for one in group["faults"]]


def _fault(group: dict[str, Any], one: dict[str, Any]) -> Fault:
    change = Change(one["pattern"], one["replacement"], tuple(one.get("context", ())))
    return Fault(group["group"], one["name"], change, tuple(one.get("tests", group["tests"])))


def read_sources(root: Path) -> list[Source]:
    """Parse the package below a folder; the paths are relative to it."""
    return [Source.read(root, path) for folder in SEARCHED for path in sorted((root / folder).rglob("*.py"))]

"""Reading what a run left in its folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

SMALL = ["--data.size", "16", "--data.validation_size", "8", "--data.batch_size", "4"]
ROLLOUTS = ["--model.iterations", "2", "--trainer.val_check_interval", "0.5"]
CLOCKS = ("time/", "throughput/", "memory/")
"""Metrics that differ from run to run."""


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what a clock or the machine decides."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith(CLOCKS)} for row in rows]


def differing(first: Path, second: Path) -> list[str]:
    """What two runs did not measure alike, step by step: empty if they are the same bit by bit."""
    one, other = metrics(first), metrics(second)
    found = [] if len(one) == len(other) else [f"{len(one)} rows and {len(other)}"]
    for row, same in zip(one, other, strict=False):
        names = [name for name in {**row, **same} if row.get(name) != same.get(name)]
        found += [f"step {row['step']}: {name} {row.get(name)!r} and {same.get(name)!r}" for name in names]
    return found


def column(folder: Path, name: str) -> list[float]:
    """The numbers of one metric, in the order of their steps."""
    return [float(row[name]) for row in metrics(folder) if row.get(name)]


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of an export."""
    return {
        f"{path.stem}/{name}": value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """The same names, and the same numbers bit by bit."""
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)

"""Read the files of runs for a report: config, metrics, samples, summary and tables, also while a run is in progress."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.run.results import Run

IGNORED = ("trainer.default_root_dir", "ckpt_path", "trainer.logger")
"""Keys of a config that say where a run writes, and not what it does."""
SEEDS = ("seed_everything",)
LONGEST_VALUE = 120
Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """Hold what a run has left so far."""

    name: str
    """Differs from that of every other run of the report."""
    folder: Path
    config: Mapping[str, str]
    """Key path to value as text."""
    metrics: Sequence[Mapping[str, float]] = field(repr=False)
    """Rows of `metrics.csv` with what each has, in the order of `step`."""
    samples: Sequence[Row] = field(repr=False)
    """Rows of `samples.jsonl`."""
    tables: Mapping[str, Sequence[Row]] = field(repr=False)
    """Tables of evaluations by name."""
    ended: bool = True
    """There is a summary."""

    @cached_property
    def summary(self) -> dict[str, dict[str, float]]:
        """The held-out metrics before and after; of a run in progress those of its first and its latest validation."""
        path = self.folder / "summary.json"
        if path.is_file():
            found: dict[str, dict[str, float | None]] = json.loads(path.read_text(encoding="utf-8"))
            return {name: {k: v for k, v in row.items() if v is not None} for name, row in found.items()}
        names = dict.fromkeys(name for row in self.metrics for name in row if name.startswith("val/"))
        return {name: _ends([row[name] for row in self.metrics if name in row]) for name in names}

    @property
    def seed(self) -> str:
        """The seed, as text; empty without one."""
        return self.config.get(SEEDS[0], "")

    def series(self, name: str) -> list[tuple[int, float]]:
        """Return the steps and values of a metric."""
        return [(int(row["step"]), row[name]) for row in self.metrics if name in row]

    def last(self, name: str, share: float = 0.1) -> float | None:
        """Return the mean of the last values of a metric, at least one; None without any."""
        return mean_of(values[-max(1, int(len(values) * share)) :]) if (values := self._values(name)) else None

    def first(self, name: str, share: float = 0.1) -> float | None:
        """Return the mean of the first values of a metric, at least one; None without any."""
        return mean_of(values[: max(1, int(len(values) * share))]) if (values := self._values(name)) else None

    def samples_at(self, step: int) -> list[Row]:
        """Return the held-out samples of a validation."""
        return [row for row in self.samples if row["step"] == step]

    @cached_property
    def sample_steps(self) -> list[int]:
        """Steps of the validations that have samples."""
        return sorted({row["step"] for row in self.samples})

    def _values(self, name: str) -> list[float]:
        return [row[name] for row in self.metrics if name in row]


@dataclass(frozen=True)
class Group:
    """Hold runs whose configs differ by the seed alone."""

    name: str
    runs: Sequence[RunFiles]


def read_runs(folders: Iterable[Path]) -> list[RunFiles]:
    """Read the folders of runs.

    Raises:
        UserError: one is no run's folder, or a file in it cannot be read.
    """
    paths = list(dict.fromkeys(Path(folder).expanduser() for folder in folders))
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read(folder: Path, name: str) -> RunFiles:
    config = Run(folder).config
    tables = {path.stem: _json_lines(path) for path in sorted((folder / "tables").glob("*.jsonl"))}
    return RunFiles(
        name,
        folder,
        dict(_flat(config)),
        _metrics(folder / "metrics.csv"),
        _json_lines(folder / "samples.jsonl"),
        tables,
        (folder / "summary.json").is_file(),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Name each run by the shortest end of its path that no other run has."""
    whole = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, whole), default=0) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _metrics(path: Path) -> list[dict[str, float]]:
    """Read the whole lines of a metrics file; a cell without a finite number is skipped."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    whole = [line for line in text.splitlines(keepends=True) if line[-1] == "\n"]
    rows = csv.DictReader(whole)
    numbers = [{name: _number(value) for name, value in row.items() if name} for row in rows]
    return [{name: x for name, x in row.items() if x is not None} for row in numbers if row.get("step") is not None]


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _json_lines(path: Path) -> list[Row]:
    """Read the whole lines of a file of JSON lines.

    Raises:
        UserError: a whole line is no JSON object.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}:{number} is no JSON object with a step; remove the line, or the file")
        rows.append(row)
    return rows


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, str]]:
    """Yield the leaves of a config by key path; `init_args` and the prefix of class paths are not shown."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            inner = path if key == "init_args" else f"{path}.{key}" if path else str(key)
            yield from _flat(item, inner.removesuffix(".class_path") or str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for item in value:
            named = str(item.get("class_path", "")).rpartition(".")[2] if isinstance(item, Mapping) else ""
            yield from _flat(item, f"{path}.{named}" if named else path)
    elif path not in IGNORED:
        text = str(value) if isinstance(value, str) else json.dumps(value, default=str)
        text = text.rpartition(".")[2] if text.startswith("rlhf_lightning.") else text
        yield path, text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "…"


def differing_keys(runs: Sequence[RunFiles]) -> list[str]:
    """Return the keys whose values are not the same in all runs, without the seed.

    Where a class differs, such as the algorithm, an option of it is returned if it differs between runs of the same class.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config)
    found: list[str] = []
    for key in keys:
        above = [other for other in found if key.startswith(f"{other}.")]
        values: dict[tuple[str | None, ...], set[str | None]] = {}
        for run in runs:
            values.setdefault(tuple(run.config.get(other) for other in above), set()).add(run.config.get(key))
        if key not in SEEDS and any(len(each) > 1 for each in values.values()):
            found.append(key)
    return found


def grouped(runs: Sequence[RunFiles]) -> list[Group]:
    """Group the runs that differ by the seed alone; a group is named by the values that tell it from the others."""
    keys = differing_keys(runs)
    members: dict[tuple[str | None, ...], list[RunFiles]] = {}
    for run in runs:
        members.setdefault(tuple(run.config.get(key) for key in keys), []).append(run)
    names = _group_names(keys, list(members))
    if len(members) == len(runs):
        names = [run.name for run in runs]
    return [Group(name, each) for name, each in zip(names, members.values(), strict=True)]


def _group_names(keys: Sequence[str], values: Sequence[tuple[str | None, ...]]) -> list[str]:
    """Name groups by the first key whose values tell them all apart; else by as many values as it takes."""
    for place in range(len(keys)):
        if len({row[place] for row in values}) == len(values):
            return [str(row[place]) for row in values]
    for count in range(2, len(keys) + 1):
        if len({row[:count] for row in values}) == len(values):
            return [
                ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in zip(keys, row[:count], strict=False))
                for row in values
            ]
    return [f"config {number}" for number in range(1, len(values) + 1)]


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return sum(values) / len(values)


def _ends(values: Sequence[float]) -> dict[str, float]:
    return {"before": values[0], "after": values[-1]} if values else {}

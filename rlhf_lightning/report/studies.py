"""Read the folder of a study that `tune` left: its trials, importances and the runs worth showing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

FILE = "study.json"
RUNS_SHOWN = 5
"""Runs of a study that a report has, the best ones."""
TRIALS_SHOWN = 100


@dataclass(frozen=True)
class StudyFiles:
    """Hold what a study has found so far."""

    folder: Path
    metric: str
    kl_metric: str
    kl_limit: float | None
    best: int | None
    importances: Mapping[str, float]
    """Parameter to a number from 0 to 1, largest first."""
    trials: Sequence[Mapping[str, Any]]
    """Complete trials, best first, then pruned, failed and running ones."""

    @property
    def parameters(self) -> list[str]:
        """Keys that were searched."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial["params"]))

    @property
    def counts(self) -> str:
        """Say how many trials ended in which state."""
        states = [trial["state"] for trial in self.trials]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    @property
    def rows(self) -> list[list[str]]:
        """Return a row of texts per trial: number, state, metric, KL divergence, values."""
        return [
            [
                f"{trial['number']}{' (best)' if trial['number'] == self.best else ''}",
                trial["state"] if trial["within_limit"] or trial["value"] is None else "beyond the KL limit",
                _text(trial["value"]),
                _text(trial["kl"]),
                *(_text(trial["params"].get(key)) for key in self.parameters),
            ]
            for trial in self.trials[:TRIALS_SHOWN]
        ]

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns of `rows`."""
        return ["trial", "state", self.metric, self.kl_metric, *self.parameters]

    @property
    def runs(self) -> list[Path]:
        """Return the folders of the best complete trials."""
        complete = [trial for trial in self.trials if trial["value"] is not None]
        return [self.folder / trial["folder"] for trial in complete[:RUNS_SHOWN]]


def expand_studies(folders: Iterable[Path]) -> tuple[list[Path], list[StudyFiles]]:
    """Replace the folder of a study by those of its best runs.

    Returns:
        Folders of runs, and the studies among `folders`.

    Raises:
        UserError: a study has no complete trial yet.
    """
    runs: list[Path] = []
    studies = []
    for folder in folders:
        if not (Path(folder).expanduser() / FILE).is_file():
            runs.append(folder)
            continue
        study = _read(Path(folder).expanduser())
        if not study.runs:
            raise UserError(f"the study in {folder} has no complete trial; run tune again")
        studies.append(study)
        runs += study.runs
    return runs, studies


def _read(folder: Path) -> StudyFiles:
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    sign = -1 if content["direction"] == "maximize" else 1
    trials = sorted(
        content["trials"],
        key=lambda trial: (
            trial["value"] is None,
            not trial["within_limit"],
            sign * (trial["value"] or 0.0),
            trial["state"],
            trial["number"],
        ),
    )
    importances = sorted(content["importances"].items(), key=lambda item: -item[1])
    names = ("metric", "kl_metric", "kl_limit", "best")
    return StudyFiles(folder, **{name: content[name] for name in names}, importances=dict(importances), trials=trials)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

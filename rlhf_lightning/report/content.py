"""What a report says, as plain data: the page and the Markdown show the same."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.report.curves import curves, frontier, is_reward
from rlhf_lightning.report.phases import Phases, phases
from rlhf_lightning.report.runs import Group, RunFiles, differing_keys, grouped
from rlhf_lightning.report.samples import coloured_tokens, side_by_side
from rlhf_lightning.report.studies import StudyFiles
from rlhf_lightning.report.warnings import Warned, warnings_of

FACTS = (
    "model",
    "model.policy.name_or_path",
    "model.model.name_or_path",
    "model.algorithm",
    "model.reward",
    "data",
    "data.train",
    "model.optimizer.lr",
    "seed_everything",
)
"""Keys of a config that are shown of a single run."""
MAIN_CHANGES = ("val/win_rate", "val/kl/reference", "val/response/length", "val/loss", "val/preference/accuracy")
"""Held-out metrics that are shown at once, beside the means of rewards."""
SAMPLES_BUDGET = 2_500_000


@dataclass(frozen=True)
class Change:
    """Hold a held-out metric of one group before and after training."""

    group: str
    before: str
    after: str
    attainable: str
    """The best value that any responses to the held-out prompts could have; empty where it is not known."""
    rose: bool | None
    """None where the metric did not change."""


@dataclass(frozen=True)
class Report:
    """Hold the contents of a report."""

    title: str
    runs: Sequence[RunFiles]
    groups: Sequence[Group]
    keys: Sequence[str]
    """Keys of the configs that are shown."""
    changes: dict[str, list[Change]]
    """Held-out metric to a row per group."""
    phases: Sequence[Phases]
    warnings: Sequence[Warned]
    studies: Sequence[StudyFiles] = ()

    @property
    def main_changes(self) -> list[tuple[str, list[Change]]]:
        """Return the metrics that are shown at once."""
        return [(name, changes) for name, changes in self.changes.items() if _is_main(name)]

    @property
    def further_changes(self) -> list[tuple[str, list[Change]]]:
        """Return the other metrics."""
        return [(name, changes) for name, changes in self.changes.items() if not _is_main(name)]

    def data(self, budget: int = SAMPLES_BUDGET) -> dict[str, Any]:
        """Return what the page draws, as values of JSON."""
        return {
            "runs": [run.name for run in self.runs],
            "curves": curves(self.groups),
            "frontier": frontier(self.runs),
            "samples": side_by_side(self.runs, budget),
            "tokens": coloured_tokens(self.runs),
        }


def report_of(runs: Sequence[RunFiles], title: str | None = None, studies: Sequence[StudyFiles] = ()) -> Report:
    """Collect the contents of a report about runs, and about the studies that some of them are of."""
    groups = grouped(runs)
    keys = differing_keys(runs)
    if not keys:
        keys = [key for key in FACTS if any(key in run.config for run in runs)]
    elif len({run.seed for run in runs}) > 1:
        keys = [*keys, "seed_everything"]
    name = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    return Report(title or name, runs, groups, keys, _changes(groups), phases(runs), warnings_of(runs), studies)


def _is_main(name: str) -> bool:
    return name in MAIN_CHANGES or is_reward(name)


def _changes(groups: Sequence[Group]) -> dict[str, list[Change]]:
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.summary)
    ordered = sorted(names, key=lambda name: (not _is_main(name), not is_reward(name), name))
    return {
        name: [_change(group, name) for group in groups if any(name in r.summary for r in group.runs)]
        for name in ordered
    }


def _change(group: Group, name: str) -> Change:
    rows = [run.summary[name] for run in group.runs if name in run.summary]
    before, after, best = ([row[key] for row in rows if key in row] for key in ("before", "after", "best"))
    moved = statistics.fmean(after) - statistics.fmean(before) if before and after else 0.0
    return Change(group.name, _spread(before), _spread(after), _spread(best), None if not moved else moved > 0)


def _spread(values: Sequence[float]) -> str:
    """Format a mean, with the standard deviation over seeds where there are several."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean

"""Where the time and the memory of runs went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.report.runs import RunFiles

PREFIX = "time/"


@dataclass(frozen=True)
class Phases:
    """Hold the cost of a run."""

    run: str
    seconds: dict[str, float]
    """Phase to seconds over the whole run."""
    memory: float | None
    """Peak in GiB."""
    tokens_per_second: float | None
    """Mean rate of generation."""

    @property
    def total(self) -> float:
        """Seconds of all phases; validations, checkpoints and loading are no phase."""
        return sum(self.seconds.values())


def phases(runs: Sequence[RunFiles]) -> list[Phases]:
    """Sum the seconds of each phase, of the runs that log any."""
    found = []
    for run in runs:
        names = dict.fromkeys(name for row in run.metrics for name in row if name.startswith(PREFIX))
        seconds = {name.removeprefix(PREFIX): sum(value for _, value in run.series(name)) for name in names}
        memory = max((value for _, value in run.series("memory/peak")), default=None)
        if seconds:
            found.append(Phases(run.name, seconds, memory, run.last("throughput/tokens_per_second", 1.0)))
    return found

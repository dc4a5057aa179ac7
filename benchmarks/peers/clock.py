"""What a measuring process notes: the end of every update, seconds by phase, memory."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers.work import REAL, Job

PHASES = ("generate", "score", "reference", "update")
MIB = 2**20


def resident() -> float:
    """MiB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB


def peak() -> float:
    """MiB that it held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds of every update, and what was spent inside `timed` phases of it.

    Make it when the libraries are imported and nothing is loaded: what the process holds then is its base.
    """

    def __init__(self) -> None:
        self.base = resident()
        self.ends: list[tuple[float, float]] = []
        self.phases: list[dict[str, float]] = []
        self.running: dict[str, float] = defaultdict(float)
        self.peak = 0.0
        self.before = (0.0, 0.0)
        """Seconds, and CPU seconds, of an update that were spent before the first one, on all of them."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.running[phase] += time.perf_counter() - started

    @staticmethod
    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def end_update(self) -> None:
        self.ends.append(self.now())
        self.phases.append(dict(self.running))
        self.running.clear()
        self.peak = peak()

    def result(self, job: Job, lengths: dict[str, float], versions: dict[str, str]) -> dict[str, Any]:
        """Of the updates after the warm-up: the median, and the mean where lengths, and so updates, differ."""
        measured = job.updates
        wall, cpu = (_steps([end[i] for end in self.ends])[-measured:] for i in (0, 1))
        middle = statistics.mean if job.work.kind in REAL else statistics.median
        phases = {p: middle([update.get(p, 0.0) for update in self.phases[-measured:]]) for p in PHASES[:-1]}
        phases["reference"] += self.before[0]
        seconds = middle(wall) + self.before[0]
        phases["update"] = seconds - sum(phases.values())
        return {
            "job": job.to_json(),
            "seconds": round(seconds, 4),
            "cpu_seconds": round(middle(cpu) + self.before[1], 4),
            "fastest": round(min(wall), 4),
            "slowest": round(max(wall), 4),
            "tokens": round(lengths["needed"]),
            "tokens_per_second": round(lengths["needed"] / seconds, 1),
            "lengths": lengths,
            "peak_mib": round(self.peak, 1),
            "base_mib": round(self.base, 1),
            "phases": {name: round(value, 4) for name, value in phases.items()},
            "load": [round(x, 2) for x in os.getloadavg()],
            "python": platform.python_version(),
            "versions": versions,
        }


def _steps(ends: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(ends)]


def lengths_of(job: Job, rows: list[dict[str, str]], tokenizer: Any) -> dict[str, float]:
    """Tokens of an update: each response with its prompt (and the squares of that), each prompt once, a padded row's."""
    work = job.work
    if work.length:
        width = work.prompt + work.length
        once = work.batch * work.prompt + work.rows * work.length
        return {"needed": work.rows * width, "once": once, "squares": work.rows * width**2, "width": width}
    names = ("chosen", "rejected", "completion")
    count = {name: [len(ids) for ids in tokenizer([r[name] for r in rows])["input_ids"]] for name in rows[0]}
    generated = [count[name] for name in names if name in count]
    whole = [[p + r + 1 for p, r in zip(count["prompt"], responses, strict=True)] for responses in generated]
    starts = range(0, len(rows), work.batch)
    widths = [max(max(lengths[i : i + work.batch]) for lengths in whole) for i in starts]
    updates = len(rows) / work.batch
    return {
        "needed": sum(map(sum, whole)) / updates,
        "once": (sum(map(sum, whole)) - (len(whole) - 1) * sum(count["prompt"])) / updates,
        "squares": sum(n * n for lengths in whole for n in lengths) / updates,
        "width": statistics.mean(widths),
    }

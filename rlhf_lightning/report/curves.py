"""Curves of metrics for the page: a mean and a band over the seeds of each group, with a limited number of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.report.runs import Group, RunFiles

POINTS = 300
"""Points of a curve at most; steps between them are averaged."""
MAIN = (
    ("Reward, held-out", ("val/reward/mean", "val/reward/true")),
    ("Reward, training", ("reward/mean",)),
    ("KL to the reference, nats per token", ("val/kl/reference", "kl/reference")),
    ("Win rate", ("val/win_rate",)),
    ("Preference accuracy", ("val/preference/accuracy", "preference/accuracy")),
    ("Response length, tokens", ("val/response/length", "response/length")),
    ("Entropy, nats per token", ("policy/entropy",)),
    ("Loss", ("val/loss", "loss/policy", "loss/completion")),
    ("Gradient norm", ("optimizer/grad_norm",)),
)
"""Charts of the page: title, and the metrics of which the first that a run has is shown."""


def curves(groups: Sequence[Group]) -> dict[str, Any]:
    """Return every metric of the runs as series.

    Returns:
        `metrics`: name to one entry per group, `[steps, means, lows, highs]` or None without the metric. `charts`: title and
        metric of the charts to show.
    """
    names = dict.fromkeys(name for group in groups for run in group.runs for row in run.metrics for name in row)
    names.pop("step", None)
    series = {name: [band(group.runs, name) for group in groups] for name in names}
    chosen = [(title, next((name for name in options if name in series), None)) for title, options in MAIN]
    rewards = [name for name in series if is_reward(name) and name not in {metric for _, metric in chosen}]
    charts = [{"title": title, "metric": metric} for title, metric in chosen if metric is not None]
    charts[1:1] = [{"title": f"{name.removeprefix('val/')}, held-out", "metric": name} for name in rewards]
    return {"metrics": series, "charts": charts, "groups": [{"name": g.name, "runs": len(g.runs)} for g in groups]}


def is_reward(name: str) -> bool:
    """Tell whether a metric is the mean of an evaluation reward, and no component of one."""
    return name.startswith("val/reward/") and name.count("/") == 2 and name != "val/reward/unscored"


def band(runs: Sequence[RunFiles], name: str) -> list[list[float]] | None:
    """Return steps, and mean, lowest and highest value over the runs that have the metric at a step."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for step, value in run.series(name):
            values.setdefault(step, []).append(value)
    if not values:
        return None
    rows = [(step, sum(each) / len(each), min(each), max(each)) for step, each in sorted(values.items())]
    size = -(-len(rows) // POINTS)
    chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
    columns = ((chunk[-1][0], *(_mean([row[k] for row in chunk]) for k in (1, 2, 3))) for chunk in chunks)
    return [list(column) for column in zip(*columns, strict=True)]


def frontier(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return a point per validation and run, of the table that `KLFrontier` keeps, or of the held-out metrics.

    Returns:
        `scores`: names of rewards. `points`: per run a list of `{step, kl, <score>: …}`.
    """
    points = [_frontier_points(run) for run in runs]
    names = dict.fromkeys(name for run in points for point in run for name in point if name.startswith("reward/"))
    return {"scores": list(names), "points": points, "runs": [run.name for run in runs]}


def _frontier_points(run: RunFiles) -> list[dict[str, float]]:
    table = run.tables.get("kl_frontier")
    if table:
        kept = ({k: v for k, v in row.items() if isinstance(v, int | float)} for row in table)
        return [{name: _short(value) for name, value in row.items() if name != "sqrt_kl"} for row in kept]
    needed = ("val/kl/reference", "val/response/length", "val/reward/mean")
    return [
        {"step": row["step"], "kl": _short(row[needed[0]] * row[needed[1]])}
        | {name.removeprefix("val/"): _short(x) for name, x in row.items() if is_reward(name)}
        for row in run.metrics
        if all(name in row for name in needed)
    ]


def _mean(values: Sequence[float]) -> float:
    return _short(sum(values) / len(values))


def _short(value: float) -> float:
    return float(f"{value:.5g}")

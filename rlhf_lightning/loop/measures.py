"""What is measured at the end of a round, and whether the loop ends."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.feedback.agreement import overview
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.loop.config import LoopConfig
from rlhf_lightning.loop.tree import Round

Row = dict[str, Any]


def measure(store: Store, config: LoopConfig, round_: Round) -> Row:
    """Return the content of `measured.json`: labels, agreement, annotators, and the held-out metrics of both runs."""
    found = overview(store, None if config.reconcile == "majority" else config.reconcile)
    return {
        "round": round_.number,
        "labels": _lines(round_.labels),
        "held_out": _lines(round_.held_out),
        "judgements": found.judgements,
        "agreement": [asdict(agreement) for agreement in found.agreement],
        "annotators": [{**asdict(row), "name": None} for row in found.annotators],
        "reward": _summary(round_.reward, "after"),
        "policy": _summary(round_.policy, "after"),
        "policy_before": _summary(round_.policy, "before"),
    }


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _summary(folder: Path, column: str) -> dict[str, float | None]:
    path = folder / "summary.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: values[column] for name, values in rows.items()}


def metrics_of(row: Row) -> dict[str, float]:
    """Return the held-out metrics of a round under the names that `monitor` takes."""
    return {
        f"{stage}/{name}": value
        for stage in ("reward", "policy")
        for name, value in row[stage].items()
        if value is not None
    }


def is_over(measured: list[Row], config: LoopConfig) -> str | None:
    """Return why the loop ends after these rounds; None where another round follows.

    Raises:
        UserError: no round has the metric that is monitored.
    """
    if config.monitor is not None and measured:
        known = metrics_of(measured[-1])
        if config.monitor not in known:
            raise UserError(f"monitor is {config.monitor}, which no round has; {nearest(config.monitor, known)}")
        values = [metrics_of(row).get(config.monitor, float("-inf")) for row in measured]
        best = max(range(len(values)), key=lambda place: (values[place], -place))
        if len(values) - 1 - best >= config.rounds_without_gain:
            return (
                f"{config.monitor} has had no new best value for {config.rounds_without_gain} rounds; the best one is "
                f"{values[best]:.4f} of round {best}"
            )
    return f"all {config.rounds} rounds are done" if len(measured) >= config.rounds else None

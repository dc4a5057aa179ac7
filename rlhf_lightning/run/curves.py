"""`curves.png`: the metrics of a run against its optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.run.metrics_csv import MetricsFile

PANELS = {
    "reward": ("reward/mean", "val/reward/mean", "val/reward/true"),
    "KL to the reference, nats per token": ("kl/reference", "val/kl/reference"),
    "response length, tokens": ("response/length", "val/response/length"),
    "loss": ("loss/policy", "val/loss/policy"),
    "preference accuracy": ("preference/accuracy", "val/preference/accuracy", "val/label/accuracy"),
}


class Curves(Callback):
    """Plot the metrics of a run against its optimiser steps when it ends."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the rows of `metrics.csv`."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile) and trainer.is_global_zero and logger.last is not None:
                draw(list(logger.rows()), logger.folder / "curves.png")


def draw(rows: list[dict[str, Any]], path: Path | BinaryIO) -> None:
    """Plot one panel for each kind of metric: training as a thin line, validation with dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = {name: points for names in PANELS.values() for name in names if (points := _points(rows, name))}
    panels = {title: [n for n in names if n in series] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        for name in names:
            steps, values = zip(*series[name], strict=True)
            held_out = name.startswith("val/")
            axes.plot(
                steps,
                values,
                "o-" if held_out or len(steps) == 1 else "-",  # a line through one point is invisible
                lw=2 if held_out else 1.2,
                ms=4,
                label=name,
                alpha=1 if held_out else 0.7,
            )
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimiser steps")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, format="png")


def _points(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [
        (row["step"], float(row[name]))
        for row in rows
        if row.get(name) not in (None, "") and float(row[name]) == float(row[name])
    ]

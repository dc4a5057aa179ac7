"""The reward that a policy reached, against its KL to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_lightning.io import atomic_write

Point = Mapping[str, float]


def on_frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell for each (KL, reward) whether no other point has at most its KL and at least its reward, and one of them better.

    >>> on_frontier([(0.0, 1.0), (1.0, 0.5), (1.0, 2.0), (2.0, 2.0)])
    [True, False, True, False]
    """
    return [
        not any(k <= kl and r >= reward and (k < kl or r > reward) for k, r in points if (k, r) != (kl, reward))
        for kl, reward in points
    ]


def draw_frontier(points: Sequence[Point], path: Path) -> None:
    """Draw every reward against the square root of the KL, in which Gao et al. (2022) found simple laws.

    Args:
        points: in the order of the steps, each with `sqrt_kl` and rewards.
        path: of the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for point in points for name in point if name.startswith("reward/")):
        known = [(point["sqrt_kl"], point[name]) for point in points if name in point]
        axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=name)
    axes.set(xlabel="√KL(policy ‖ reference), nats per response", ylabel="held-out reward")
    axes.legend()
    atomic_write(path, lambda partial: figure.savefig(partial, format="png", dpi=120))

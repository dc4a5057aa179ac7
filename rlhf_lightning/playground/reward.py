"""The playground's true reward."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.playground.task import MEASURES, QUALITIES
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions


class PlaygroundReward(Reward):
    """The true reward of a reply, from 0 to 1; its four qualities are the components."""

    best = 1.0

    def __init__(self) -> None:
        self.qualities: dict[str, list[float | None]] = {}

    def __call__(self, completions: Completions) -> Sequence[float]:
        """Return the true reward of each reply."""
        pairs = list(zip(completions.prompts, completions.responses, strict=True))
        self.qualities = {name: [measure(*pair) for pair in pairs] for name, measure in MEASURES.items()}
        return [
            sum(weight * (self.qualities[name][i] or 0.0) for name, weight in QUALITIES.items())
            for i in range(len(pairs))
        ]

    def components(self) -> dict[str, list[float | None]]:
        """Return the qualities answers, polite, brief and varied of each reply."""
        return self.qualities

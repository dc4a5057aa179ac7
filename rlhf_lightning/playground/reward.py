"""The playground's true reward."""

from __future__ import annotations

from rlhf_lightning.playground.task import MEASURES, QUALITIES
from rlhf_lightning.rewards.base import Reward, RewardOutput
from rlhf_lightning.types import Completions


class PlaygroundReward(Reward):
    """The true reward of a reply, from 0 to 1; its four qualities are the components."""

    best = 1.0

    def __call__(self, completions: Completions) -> RewardOutput:
        """Return the true reward of each reply; its components are answers, polite, brief and varied."""
        pairs = list(zip(completions.prompts, completions.responses, strict=True))
        qualities = {name: [measure(*pair) for pair in pairs] for name, measure in MEASURES.items()}
        scores = [sum(weight * qualities[name][i] for name, weight in QUALITIES.items()) for i in range(len(pairs))]
        return RewardOutput(scores, qualities)

"""The playground: a seeded task with a known true reward, and tiny trained models, installed with the package."""

from rlhf_lightning.playground.data import (
    PlaygroundInstructions,
    PlaygroundLabels,
    PlaygroundPreferences,
    PlaygroundPrompts,
)
from rlhf_lightning.playground.reward import PlaygroundReward

__all__ = [
    "PlaygroundInstructions",
    "PlaygroundLabels",
    "PlaygroundPreferences",
    "PlaygroundPrompts",
    "PlaygroundReward",
]

"""The embedded default: a seeded task with a known true reward, and tiny trained models."""

from rlhf_lightning.playground.data import PlaygroundInstructions, PlaygroundPreferences, PlaygroundPrompts
from rlhf_lightning.playground.reward import PlaygroundReward

__all__ = ["PlaygroundInstructions", "PlaygroundPreferences", "PlaygroundPrompts", "PlaygroundReward"]

"""Noise as reward: the control that every gain should be held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions


class RandomReward(Reward):
    """A standard normal number for every response, whatever it says.

    Args:
        seed: of its generator.
    """

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, completions: Completions) -> Sequence[float]:
        """The next numbers."""
        return torch.randn(len(completions), generator=self.generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        self.generator.set_state(state["generator"])

"""Random scores, as the control of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_lightning.errors import check_seed
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions


class RandomReward(Reward):
    """Return a standard normal number for every response.

    Args:
        seed: seed of the random generator.
    """

    def __init__(self, seed: int = 0) -> None:
        check_seed("RandomReward.seed", seed)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, completions: Completions) -> Sequence[float]:
        """Sample one number per response."""
        return torch.randn(len(completions), generator=self.generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the generator."""
        self.generator.set_state(state["generator"])

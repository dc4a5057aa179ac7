"""A reward around another one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from rlhf_lightning.models.shared_base import SharedBase
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.function import as_reward


class WrappedReward(Reward):
    """Give another reward something else to score; checks, columns, weights and state are those of the other reward.

    A subclass implements `__call__`.

    Args:
        reward: the reward that scores; in Python also a function.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward: Reward = as_reward(reward)
        self.scores_while_generating = self.reward.scores_while_generating
        self.component_weights = self.reward.component_weights

    def check(self) -> None:
        """Check the reward."""
        self.reward.check()

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Check the columns for the reward."""
        self.reward.check_columns(columns, where)

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the columns of the reward."""
        return self.reward.used_columns(columns)

    def share(self, base: SharedBase) -> None:
        """Let the reward use the policy's base model where it can."""
        self.reward.share(base)

    def load(self, device: torch.device) -> None:
        """Load the reward."""
        self.reward.load(device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the reward."""
        return self.reward.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the reward."""
        self.reward.load_state_dict(state)

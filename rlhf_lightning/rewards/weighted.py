"""A weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.models.shared_base import SharedBase
from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.types import Completions


class WeightedSum(Reward):
    """Sum named rewards with weights; each is logged as `reward/<name>`.

    A response that one of the rewards cannot score has no score.

    Args:
        rewards: the rewards by name; in Python also functions.
        weights: weights by the same names; by default 1.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float] | None = None) -> None:
        rewards = {name: as_reward(reward) for name, reward in rewards.items()}
        self.rewards, self.weights = rewards, weights or {}
        for name in self.weights:
            if name not in rewards:
                raise UserError(
                    f"WeightedSum.weights has the key {name!r}, which is not in WeightedSum.rewards; {nearest(name, rewards)}"
                )
        if not rewards:
            raise UserError("WeightedSum.rewards is empty; add at least one reward")
        self.last_scores: dict[str, list[float | None]] = {}
        self.scores_while_generating = all(reward.scores_while_generating for reward in rewards.values())

    def check(self) -> None:
        """Check every reward."""
        for reward in self.rewards.values():
            reward.check()

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Check the columns for every reward."""
        for reward in self.rewards.values():
            reward.check_columns(columns, where)

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the columns of every reward of the sum."""
        return {name for reward in self.rewards.values() for name in reward.used_columns(columns)}

    def share(self, base: SharedBase) -> None:
        """Let every reward use the policy's base model where it can."""
        for reward in self.rewards.values():
            reward.share(base)

    def load(self, device: torch.device) -> None:
        """Load every reward."""
        for reward in self.rewards.values():
            reward.load(device)

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """Return the weighted sums; None where one of the scores is None."""
        scores = {name: score(reward, completions) for name, reward in self.rewards.items()}
        self.last_scores = {name: _optional(values) for name, values in scores.items()}
        return _optional(torch.stack([self.weights.get(name, 1.0) * values for name, values in scores.items()]).sum(0))

    def components(self) -> dict[str, list[float | None]]:
        """Return the scores of each reward, before weighting."""
        return self.last_scores

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each reward by name."""
        return {name: reward.state_dict() for name, reward in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of each reward."""
        for name, reward in self.rewards.items():
            reward.load_state_dict(state[name])


def _optional(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]

"""A weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.models.shared_base import SharedBase
from rlhf_lightning.rewards.base import Reward, RewardOutput, reward_scores
from rlhf_lightning.rewards.checking import checked_components
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
        self.component_weights: dict[str, float] = {name: self.weights.get(name, 1.0) for name in rewards}
        for name in self.weights:
            if name not in rewards:
                raise UserError(
                    f"WeightedSum.weights has the key {name!r}, which is not in WeightedSum.rewards; {nearest(name, rewards)}"
                )
        if not rewards:
            raise UserError("WeightedSum.rewards is empty; add at least one reward")
        checked_components("WeightedSum", rewards)
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

    def __call__(self, completions: Completions) -> RewardOutput:
        """Return the weighted sums; None where one of the scores is None. The components are the scores before weighting.

        Step rewards add up too. The score of a reward without steps is for the end of the response.
        """
        scores = {name: reward_scores(reward, completions) for name, reward in self.rewards.items()}
        weighted = [(self.component_weights[name], each) for name, each in scores.items()]
        steps = [weight * each.step_rewards for weight, each in weighted if each.step_rewards is not None]
        total = torch.stack([weight * each.rewards for weight, each in weighted]).sum(0)
        components = {name: _optional(each.rewards) for name, each in scores.items()}
        return RewardOutput(_optional(total), components, torch.stack(steps).sum(0) if steps else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each reward by name."""
        return {name: reward.state_dict() for name, reward in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of each reward."""
        for name, reward in self.rewards.items():
            reward.load_state_dict(state[name])


def _optional(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]

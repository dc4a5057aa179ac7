"""Several rewards in one."""

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
    """The weighted sum of named rewards; each is logged as `reward/<name>`. What one of them cannot score has no score.

    Args:
        rewards: by name; in Python also functions.
        weights: by the same names; 1 where none is given.
    """

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float] | None = None) -> None:
        rewards = {name: as_reward(reward) for name, reward in rewards.items()}
        self.rewards, self.weights = rewards, weights or {}
        for name in self.weights:
            if name not in rewards:
                raise UserError(
                    f"WeightedSum.weights names {name!r}, which is no reward of it; {nearest(name, rewards)}"
                )
        if not rewards:
            raise UserError("WeightedSum.rewards is empty; give at least one reward")
        self.last: dict[str, list[float | None]] = {}
        self.scores_while_generating = all(reward.scores_while_generating for reward in rewards.values())

    def check(self) -> None:
        """Check every part."""
        for reward in self.rewards.values():
            reward.check()

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Ask every part."""
        for reward in self.rewards.values():
            reward.check_columns(columns, where)

    def share(self, base: SharedBase) -> None:
        """Ask every part."""
        for reward in self.rewards.values():
            reward.share(base)

    def load(self, device: torch.device) -> None:
        """Load every part."""
        for reward in self.rewards.values():
            reward.load(device)

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """The sum; None where a part is None."""
        scores = {name: score(reward, completions) for name, reward in self.rewards.items()}
        self.last = {name: _known(values) for name, values in scores.items()}
        return _known(torch.stack([self.weights.get(name, 1.0) * values for name, values in scores.items()]).sum(0))

    def parts(self) -> dict[str, list[float | None]]:
        """Each reward's own scores, before weighting."""
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """The memories of the parts."""
        return {name: reward.state_dict() for name, reward in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        for name, reward in self.rewards.items():
            reward.load_state_dict(state[name])


def _known(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]

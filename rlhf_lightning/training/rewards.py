"""Rewards of a stage: checked before weights are loaded, loaded when the first response is scored."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlhf_lightning.errors import UserError, shown
from rlhf_lightning.rewards.base import Reward


def check_rewards(rewards: Mapping[str, Reward]) -> dict[str, float]:
    """Check rewards before weights are loaded.

    Args:
        rewards: name to reward; the one that trains is called `mean`.

    Returns:
        The highest mean score there can be, by the name of its metric, where the reward knows it.

    Raises:
        UserError: an argument of a reward is wrong, or it is no `Reward`.
    """
    best = {}
    for name, reward in rewards.items():
        if not isinstance(reward, Reward):
            raise UserError(f"the reward {name!r} is {shown(reward, 60)}; pass a Reward or a function of `responses`")
        reward.check()
        if reward.best is not None:
            best[f"val/reward/{name}"] = reward.best
    return best


def load_rewards(rewards: Mapping[str, Reward], device: torch.device) -> None:
    """Load the models of rewards onto the device of this rank."""
    for reward in rewards.values():
        reward.load(device)

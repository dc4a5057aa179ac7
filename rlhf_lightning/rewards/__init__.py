"""Reward plug-ins."""

from rlhf_lightning.rewards.base import Reward, score
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.http import ServerReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.random import RandomReward
from rlhf_lightning.rewards.rules import LengthReward, NumberReward, PatternReward
from rlhf_lightning.rewards.weighted import WeightedSum

__all__ = [
    "FunctionReward",
    "LengthReward",
    "ModelReward",
    "NumberReward",
    "PatternReward",
    "RandomReward",
    "Reward",
    "ServerReward",
    "WeightedSum",
    "score",
]

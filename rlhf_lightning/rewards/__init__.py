"""Reward plug-ins: a reward scores whole responses, higher is better, before any KL penalty.

To add one, put a class that extends `Reward` into a new file here and import it below, or keep it in a file of your own:
`class_path: my_module.MyReward`. A plain Python function needs no class: `FunctionReward`.

The stage calls the hooks in this order:

    check()                     in `setup`, before weights are loaded: options, paths, imports
    check_columns(columns, …)   in `setup`, for each split of the data
    share(base)                 in `configure_model` of a LoRA run: use the policy's base instead of another copy
    load(device)                before the first score, on each rank
    __call__(completions)       once per rollout (or per chunk of it, with `overlap`) and per validation batch; a `RewardOutput`
                                also has the named components of the scores
    state_dict()                in each checkpoint; `load_state_dict` on resume
"""

from rlhf_lightning.rewards.base import Reward, RewardOutput, Scores, reward_scores, score
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.http import ServerReward
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.process import ProcessReward
from rlhf_lightning.rewards.random import RandomReward
from rlhf_lightning.rewards.rules import LengthReward, NumberReward, PatternReward
from rlhf_lightning.rewards.steps import StepReward
from rlhf_lightning.rewards.text import ResponseText
from rlhf_lightning.rewards.weighted import WeightedSum

__all__ = [
    "FunctionReward",
    "JudgeReward",
    "LengthReward",
    "ModelReward",
    "NumberReward",
    "PatternReward",
    "ProcessReward",
    "RandomReward",
    "ResponseText",
    "Reward",
    "RewardOutput",
    "Scores",
    "ServerReward",
    "StepReward",
    "WeightedSum",
    "reward_scores",
    "score",
]

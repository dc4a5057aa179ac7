"""Align language models with human preferences, the PyTorch Lightning way.

Every name below is imported when it is first used: `import rlhf_lightning` loads neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in `_HOMES`, for type checkers and editors
    from rlhf_lightning.algorithms.base import Algorithm as Algorithm
    from rlhf_lightning.algorithms.base import PolicyGradient as PolicyGradient
    from rlhf_lightning.algorithms.dpo import DPO as DPO
    from rlhf_lightning.algorithms.grpo import GRPO as GRPO
    from rlhf_lightning.algorithms.kl_penalty import KLPenalty as KLPenalty
    from rlhf_lightning.algorithms.ppo import PPO as PPO
    from rlhf_lightning.algorithms.reinforce import REINFORCE as REINFORCE
    from rlhf_lightning.cli.in_process import fit as fit
    from rlhf_lightning.data.loaders import LoaderData as LoaderData
    from rlhf_lightning.data.module import FileData as FileData
    from rlhf_lightning.data.modules import InstructionData as InstructionData
    from rlhf_lightning.data.modules import LabelledData as LabelledData
    from rlhf_lightning.data.modules import PreferenceData as PreferenceData
    from rlhf_lightning.data.modules import PromptData as PromptData
    from rlhf_lightning.data.modules import RankingData as RankingData
    from rlhf_lightning.data.modules import RatingData as RatingData
    from rlhf_lightning.data.row_data import RowData as RowData
    from rlhf_lightning.errors import UserError as UserError
    from rlhf_lightning.evaluation.base import Evaluation as Evaluation
    from rlhf_lightning.evaluation.base import EvaluationReport as EvaluationReport
    from rlhf_lightning.evaluation.base import SampleRequest as SampleRequest
    from rlhf_lightning.evaluation.base import ValidationResults as ValidationResults
    from rlhf_lightning.generation.base import Generator as Generator
    from rlhf_lightning.generation.local import Sampler as Sampler
    from rlhf_lightning.generation.transformers import TransformersGenerate as TransformersGenerate
    from rlhf_lightning.models.config import LoraOptions as LoraOptions
    from rlhf_lightning.models.config import ModelConfig as ModelConfig
    from rlhf_lightning.rewards.base import Reward as Reward
    from rlhf_lightning.rewards.base import RewardOutput as RewardOutput
    from rlhf_lightning.rewards.function import FunctionReward as FunctionReward
    from rlhf_lightning.rewards.http import ServerReward as ServerReward
    from rlhf_lightning.rewards.judge import JudgeReward as JudgeReward
    from rlhf_lightning.rewards.model import ModelReward as ModelReward
    from rlhf_lightning.rewards.rules import LengthReward as LengthReward
    from rlhf_lightning.rewards.rules import NumberReward as NumberReward
    from rlhf_lightning.rewards.rules import PatternReward as PatternReward
    from rlhf_lightning.rewards.steps import StepReward as StepReward
    from rlhf_lightning.rewards.text import ResponseText as ResponseText
    from rlhf_lightning.rewards.weighted import WeightedSum as WeightedSum
    from rlhf_lightning.run.results import Run as Run
    from rlhf_lightning.stages.policy import PolicyStage as PolicyStage
    from rlhf_lightning.stages.reward import RewardStage as RewardStage
    from rlhf_lightning.stages.supervised import SupervisedStage as SupervisedStage
    from rlhf_lightning.training.schedules import ScheduleFunction as ScheduleFunction
    from rlhf_lightning.training.schedules import SequentialSchedule as SequentialSchedule
    from rlhf_lightning.training.schedules import WarmupConstant as WarmupConstant
    from rlhf_lightning.training.schedules import WarmupCosine as WarmupCosine
    from rlhf_lightning.training.schedules import WarmupLinear as WarmupLinear
    from rlhf_lightning.types import Completions as Completions

__version__ = "0.1.0"

_HOMES = {
    "algorithms.base": ("Algorithm", "PolicyGradient"),
    "algorithms.dpo": ("DPO",),
    "algorithms.grpo": ("GRPO",),
    "algorithms.kl_penalty": ("KLPenalty",),
    "algorithms.ppo": ("PPO",),
    "algorithms.reinforce": ("REINFORCE",),
    "cli.in_process": ("fit",),
    "data.loaders": ("LoaderData",),
    "data.module": ("FileData",),
    "data.modules": ("InstructionData", "LabelledData", "PreferenceData", "PromptData", "RankingData", "RatingData"),
    "data.row_data": ("RowData",),
    "errors": ("UserError",),
    "evaluation.base": ("Evaluation", "EvaluationReport", "SampleRequest", "ValidationResults"),
    "generation.base": ("Generator",),
    "generation.local": ("Sampler",),
    "generation.transformers": ("TransformersGenerate",),
    "models.config": ("LoraOptions", "ModelConfig"),
    "rewards.base": ("Reward", "RewardOutput"),
    "rewards.function": ("FunctionReward",),
    "rewards.http": ("ServerReward",),
    "rewards.judge": ("JudgeReward",),
    "rewards.model": ("ModelReward",),
    "rewards.rules": ("LengthReward", "NumberReward", "PatternReward"),
    "rewards.steps": ("StepReward",),
    "rewards.text": ("ResponseText",),
    "rewards.weighted": ("WeightedSum",),
    "run.results": ("Run",),
    "stages.policy": ("PolicyStage",),
    "stages.reward": ("RewardStage",),
    "stages.supervised": ("SupervisedStage",),
    "training.schedules": (
        "ScheduleFunction",
        "SequentialSchedule",
        "WarmupConstant",
        "WarmupCosine",
        "WarmupLinear",
    ),
    "types": ("Completions",),
}
"""Module of the package: the names that it gives to the top of the package."""
_MODULES = {name: f"{__name__}.{module}" for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


if not TYPE_CHECKING:  # which would take every misspelt name for Any

    def __getattr__(name: str) -> Any:
        """Import a name of `__all__` when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

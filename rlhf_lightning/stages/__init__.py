"""One LightningModule a stage."""

from rlhf_lightning.stages.policy import PolicyStage
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.stages.supervised import SupervisedStage

__all__ = ["PolicyStage", "RewardStage", "SupervisedStage"]

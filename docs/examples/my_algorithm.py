"""An algorithm: learn from the better half of a rollout alone, as from a data set (rejection sampling fine-tuning)."""

from dataclasses import dataclass

from rlhf_lightning.algorithms import Algorithm
from rlhf_lightning.types import Batch, LossOutput


@dataclass
class BetterHalf(Algorithm):
    responses_per_prompt: int = 4
    epochs: int = 1
    minibatches: int = 2

    def prepare(self, rollout):
        better = (rollout.rewards > rollout.rewards.median()).float()
        return Batch.of(rollout, advantages=better[:, None] * rollout.mask)

    def loss(self, output, batch):
        return LossOutput(-(batch.advantages * output.logprobs).sum())

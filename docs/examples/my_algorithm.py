"""An algorithm: what to do with a rollout, and the loss of a minibatch of it."""

from dataclasses import dataclass

from rlhf_lightning.algorithms import Algorithm
from rlhf_lightning.functional.advantages import group_moments
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class MyAlgorithm(Algorithm):
    """Imitate the responses that are better than the mean of their prompt (in the manner of RAFT, Dong et al. 2023)."""

    responses_per_prompt: int = 4
    epochs: int = 1
    minibatches: int = 1

    def prepare(self, rollout: Rollout) -> Batch:
        mean, _ = group_moments(rollout.rewards, rollout.groups, rollout.mask.any(-1))
        better = rollout.rewards > mean
        return Batch.of(rollout, advantages=better[:, None] * rollout.mask.float())

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        loss = -masked_sum(batch.advantages * output.logprobs, batch.mask)
        return LossOutput(loss, {"loss/policy": (loss.detach(), self.weight(batch))})

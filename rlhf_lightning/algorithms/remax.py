"""ReMax: REINFORCE with the greedy response as baseline (Li et al. 2023, 2310.10505)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class ReMax(PolicyGradient):
    """Minimise -(R - R_greedy) log π as a mean over responses, R_greedy the reward of the greedy response to the same prompt.

    The baseline costs one more response per prompt, which is scored and not learned from. The penalty on the KL divergence is
    part of R.
    """

    greedy_baseline: ClassVar[bool] = True

    responses_per_prompt: int = 1
    """Responses that the policy generates per prompt, besides the greedy one."""
    epochs: int = 1
    """Passes over each rollout. More than one is off-policy, and the loss does not correct for it."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The penalty on the KL divergence from the reference."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute the return of each response minus the score of the greedy one."""
        assert rollout.baselines is not None
        advantages = self.returns(rollout) - rollout.baselines
        self.kl.adapt(rollout)
        return Batch.of(rollout, advantages[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum -A log π over the tokens under the mask."""
        assert batch.advantages is not None
        return policy_output(self, -batch.advantages * output.logprobs, output, batch)

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of responses: the loss is a mean over them."""
        return batch.mask.any(-1).sum()

"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import leave_one_out
from rlhf_lightning.functional.policy_losses import clipped_policy_loss, per_response, sequence_ratio
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class RLOO(PolicyGradient):
    """Minimise max(-A s, -A clip(s, 1 - ε, 1 + ε)) as a mean over responses, s = exp(Σ_t (log π - log π_old)).

    A = R - mean R of the other responses to the prompt, R the reward minus β times the KL of the response. In the first step s is
    1 and the gradient is the paper's, that of -A log π; in later steps s and its clip, which TRL has, correct for the update.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 2
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    clip_range: float = 0.2
    """ε: the ratio of a response is clipped to [1 - ε, 1 + ε]."""
    clip_range_high: float | None = None
    """ε above 1, where it differs; null: `clip_range`."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The penalty on the KL divergence from the reference."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute the return of each response minus the mean of the others to its prompt; 0 for a response without others."""
        returns, valid = self.returns(rollout), rollout.mask.any(-1)
        advantages = returns - leave_one_out(returns, rollout.groups, valid)
        self.kl.adapt(rollout)
        return Batch.of(rollout, advantages[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the clipped loss over responses."""
        assert batch.advantages is not None
        clip = (self.clip_range, self.clip_range_high)
        ratio = sequence_ratio(output.logprobs - batch.logprobs, batch.mask, mean=False)
        policy = clipped_policy_loss(ratio, batch.advantages, *clip)
        return policy_output(self, policy, output, batch, per_response(batch.mask), ratio, clip)

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of responses: the loss is a mean over them."""
        return batch.mask.any(-1).sum()

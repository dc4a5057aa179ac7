"""Group sequence policy optimisation (Zheng et al. 2025, 2507.18071)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import group_normalized
from rlhf_lightning.functional.policy_losses import clipped_policy_loss, per_response, sequence_ratio
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class GSPO(PolicyGradient):
    """Minimise max(-A s, -A clip(s, 1 - ε_low, 1 + ε_high)) as a mean over responses, s = exp(mean_t (log π - log π_old)).

    A = (R - mean) / std of the group, the responses to a prompt. The tokens of a response are clipped together.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 8
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    clip_range: float = 3e-4
    """ε_low: the ratio is clipped to 1 - ε_low. It is small because s is a geometric mean over tokens."""
    clip_range_high: float = 4e-4
    """ε_high: the ratio is clipped to 1 + ε_high."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.0, placement="loss", estimator="k3"))
    """The penalty on the KL divergence from the reference; the paper has none."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute (R - mean of the group) / (std of the group + 1e-4); 0 where all rewards of a group are equal."""
        advantages = group_normalized(self.returns(rollout), rollout.groups, rollout.mask.any(-1))
        self.kl.adapt(rollout)
        return Batch.of(rollout, advantages[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the clipped loss over responses."""
        assert batch.advantages is not None
        clip = (self.clip_range, self.clip_range_high)
        ratio = sequence_ratio(output.logprobs - batch.logprobs, batch.mask, mean=True)
        policy = clipped_policy_loss(ratio, batch.advantages, *clip)
        return policy_output(self, policy, output, batch, per_response(batch.mask), ratio, clip)

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of responses: the loss is a mean over them."""
        return batch.mask.any(-1).sum()

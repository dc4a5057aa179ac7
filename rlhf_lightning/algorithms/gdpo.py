"""GDPO: group reward-decoupled normalisation (Liu et al. 2026, 2601.05242)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import batch_normalized, normalized_components
from rlhf_lightning.functional.masked import row_sum
from rlhf_lightning.functional.policy_losses import clipped_policy_loss, per_response
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class GDPO(PolicyGradient):
    """Minimise max(-A r, -A clip(r, 1 - ε, 1 + ε)) + β KL as a mean over responses, A = Σ_k w_k (R_k - mean) / std, normalised.

    Each named reward R_k of a `WeightedSum` is normalised in the group of a prompt, then weighted and summed, and the sum is
    normalised over all ranks: a reward of a small spread counts as its weight says. A reward without weighted names is one R_k.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 8
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 - ε, 1 + ε]."""
    clip_range_high: float | None = None
    """ε above 1, where it differs; null: `clip_range`."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.04, placement="loss", estimator="k3"))
    """The penalty on the KL divergence from the reference. In the reward, it is subtracted from the weighted sum."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Normalise each reward in its group, and their weighted sum over the batch; 0 where a group has equal rewards."""
        valid, scores, weights = rollout.mask.any(-1), rollout.components, rollout.component_weights
        if scores is None or weights is None:
            scores, weights = rollout.rewards[:, None], torch.ones_like(rollout.rewards)[:, None]
        total = normalized_components(scores, weights, rollout.groups, valid)
        total = total - row_sum(self.kl.in_reward(rollout), rollout.mask)
        self.kl.adapt(rollout)
        return Batch.of(rollout, batch_normalized(total, valid)[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the clipped loss and the KL over responses."""
        assert batch.advantages is not None
        ratio, clip = self.ratio(output, batch), (self.clip_range, self.clip_range_high)
        policy = clipped_policy_loss(ratio, batch.advantages, *clip)
        return policy_output(self, policy, output, batch, per_response(batch.mask), ratio, clip)

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of responses: the loss is a mean over them."""
        return batch.mask.any(-1).sum()

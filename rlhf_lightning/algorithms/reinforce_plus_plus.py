"""REINFORCE++ and its form with a baseline (Hu et al. 2025, 2501.03262)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import group_centered, reward_to_go, token_rewards
from rlhf_lightning.functional.masked import whiten
from rlhf_lightning.functional.policy_losses import clipped_policy_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class REINFORCEPlusPlus(PolicyGradient):
    """Minimise max(-A r, -A clip(r, 1 - ε, 1 + ε)) as a mean over all tokens, A_t = R - β Σ_{k≥t} KL_k, whitened over all ranks.

    There is no critic and no group: one response per prompt is enough, and the batch gives the baseline.
    """

    responses_per_prompt: int = 1
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 - ε, 1 + ε]."""
    clip_range_high: float | None = None
    """ε above 1, where it differs; null: `clip_range`."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.01))
    """The penalty on the KL divergence from the reference."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Sum the rewards from each token on, with the KL where it is in the reward, and whiten them."""
        rewards = token_rewards(rollout.rewards, self.kl.in_reward(rollout), rollout.mask, rollout.step_rewards)
        self.kl.adapt(rollout)
        return Batch.of(rollout, whiten(reward_to_go(rewards), rollout.mask))

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the clipped loss over the tokens under the mask."""
        assert batch.advantages is not None
        ratio, clip = self.ratio(output, batch), (self.clip_range, self.clip_range_high)
        policy = clipped_policy_loss(ratio, batch.advantages, *clip)
        return policy_output(self, policy, output, batch, ratio=ratio, clip=clip)


@dataclass
class REINFORCEPlusPlusBaseline(REINFORCEPlusPlus):
    """Minimise max(-A r, -A clip(r, 1 - ε, 1 + ε)) + β k2 as a mean over all tokens, A = R - mean of the group, whitened.

    The deviation is that of all ranks, and not of the group, so prompts whose rewards are nearly equal do not weigh more.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 8
    """Responses that the policy generates per prompt."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.01, placement="loss", estimator="k2"))
    """The penalty on the KL divergence from the reference."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Subtract the mean return of the group, and whiten over the tokens of all ranks."""
        advantages = group_centered(self.returns(rollout), rollout.groups, rollout.mask.any(-1))
        self.kl.adapt(rollout)
        return Batch.of(rollout, whiten(advantages[:, None].expand(rollout.mask.shape), rollout.mask))

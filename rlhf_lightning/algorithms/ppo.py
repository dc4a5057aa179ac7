"""Proximal policy optimisation with a critic (Schulman et al. 2017, 1707.06347; Ouyang et al. 2022; Huang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import token_means, update_metrics
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import gae, token_rewards
from rlhf_lightning.functional.masked import masked_mean, masked_sum, whiten
from rlhf_lightning.functional.policy_losses import clipped_policy_loss, clipped_value_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class PPO(PolicyGradient):
    """Minimise max(-A r, -A clip(r, 1 - ε, 1 + ε)) + c_v (V - R)² / 2 as a mean over all tokens, A from GAE, whitened."""

    needs_values: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("kl.coef", "rollouts")

    responses_per_prompt: int = 1
    """Responses that the policy generates per prompt."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    gamma: float = 1.0
    """Discount of rewards."""
    gae_lambda: float = 0.95
    """λ of GAE: 1 low bias, 0 low variance."""
    value_lambda: float | None = None
    """λ of the critic's returns, where it differs; 1 in VC-PPO (Yuan et al. 2025); null: `gae_lambda`."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 - ε, 1 + ε]."""
    clip_range_high: float | None = None
    """ε above 1, where it differs; null: `clip_range`."""
    dual_clip: float | None = None
    """c of the dual clip (Ye et al. 2020), for example 3.0; null for none."""
    value_clip_range: float | None = 0.2
    """Clip range of the values around those of the rollout; null for none."""
    value_coef: float = 0.1
    """Weight of the critic's loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus; below 0 it is a penalty."""
    whiten_advantages: bool = True
    """Scale the advantages of a rollout to mean 0 and variance 1."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The penalty on the KL divergence from the reference."""
    update_kl_limit: float | None = None
    """Skip the rest of a rollout when `kl/update` (nats per token) exceeds this; null for never."""
    truncation_penalty: float = 0.0
    """Subtracted from the score of a response without a stop token."""
    bootstrap_truncated: bool = False
    """Replace the score at the end of a truncated response by γ times the critic's value of what would follow."""
    critic_warmup: int = 0
    """Rollouts in which only the critic's loss counts. It still moves a shared backbone: set `critic: separate`."""
    rollouts: int = field(default=0, init=False)
    """Rollouts with a scored response, so far."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute token rewards, advantages and returns by GAE, and whiten the advantages."""
        values, mask, final_values = rollout.values, rollout.mask, rollout.final_values
        assert values is not None
        scores = rollout.rewards - self.truncation_penalty * rollout.truncated
        ended = None if final_values is None else ~rollout.truncated
        rewards = token_rewards(scores, self.kl.in_reward(rollout), mask, rollout.step_rewards, ended)
        advantages, returns = gae(rewards, values, mask, self.gamma, self.gae_lambda, final_values)
        if self.value_lambda is not None:
            returns = gae(rewards, values, mask, self.gamma, self.value_lambda, final_values)[1]
        advantages = whiten(advantages, mask) if self.whiten_advantages else advantages
        self.kl.adapt(rollout)
        self.rollouts += int(masked_mean(mask.float(), mask))  # 0 where no rank has a row: the rollout is skipped
        return Batch.of(rollout, advantages, returns)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum policy + value_coef · value - entropy_coef · H + KL over the tokens under the mask."""
        assert batch.advantages is not None
        assert batch.returns is not None
        assert batch.values is not None
        assert output.values is not None
        log_ratio = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0)
        clip = (self.clip_range, self.clip_range_high)
        policy = clipped_policy_loss(log_ratio.exp(), batch.advantages, *clip, self.dual_clip)
        value = clipped_value_loss(output.values, batch.values, batch.returns, self.value_clip_range)
        policy_terms = policy + self.kl.in_loss(output.logprobs, batch)
        if output.entropy is not None:
            policy_terms = policy_terms - self.entropy_coef * output.entropy
        total = policy_terms * (self.rollouts > self.critic_warmup) + self.value_coef * value
        means, maxima = update_metrics(log_ratio, batch.mask, *clip)
        means |= token_means({"loss/policy": policy.detach(), "loss/value": value.detach()}, batch.mask)
        return LossOutput(masked_sum(total, batch.mask), means, maxima)

    def stop(self, metrics: dict[str, float]) -> bool:
        """Return whether the policy is further than `update_kl_limit` from the one that generated the rollout."""
        return self.update_kl_limit is not None and metrics["kl/update"] > self.update_kl_limit

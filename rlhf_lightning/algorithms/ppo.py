"""Proximal policy optimisation with a critic (Schulman et al. 2017; Ouyang et al. 2022; Huang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import update_metrics
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import gae, token_rewards
from rlhf_lightning.functional.masked import masked_sum, whiten
from rlhf_lightning.functional.policy_losses import clipped_policy_loss, clipped_value_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class PPO(PolicyGradient):
    """Clipped policy and value losses on advantages from GAE, with the KL to the reference in the reward or the loss."""

    needs_values: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("kl.coef", "rollouts")

    responses_per_prompt: int = 1
    """Responses that the policy writes to each prompt."""
    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimiser steps of one pass."""
    gamma: float = 1.0
    """Discount of rewards."""
    gae_lambda: float = 0.95
    """λ of GAE: 1 low bias, 0 low variance."""
    clip_range: float = 0.2
    """ε: how far below (and above) 1 the ratio counts."""
    clip_range_high: float | None = None
    """ε above 1, where it differs."""
    dual_clip: float | None = None
    """c of the dual clip (Ye et al. 2020), 3 for instance; null for none."""
    value_clip_range: float | None = 0.2
    """How far the critic counts as moving in one rollout; null for no limit."""
    value_coef: float = 0.1
    """Weight of the critic's loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    whiten_advantages: bool = True
    """Advantages of a rollout get mean 0 and variance 1."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The penalty for leaving the reference."""
    update_kl_limit: float | None = None
    """Skip the rest of a rollout when `kl/update` (nats per token) passes this; null for never."""
    truncation_penalty: float = 0.0
    """Taken off the score of a response without a stop token."""
    critic_warmup: int = 0
    """Rollouts in which only the critic learns; with a shared trunk the policy moves all the same: use `critic: separate`."""

    def __post_init__(self) -> None:
        """Check, and start counting rollouts."""
        super().__post_init__()
        self.rollouts = 0

    @property
    def needs_entropy(self) -> bool:
        """There is an entropy bonus."""
        return self.entropy_coef != 0

    def prepare(self, rollout: Rollout) -> Batch:
        """Rewards of tokens, GAE, whitening."""
        assert rollout.values is not None
        scores = rollout.rewards - self.truncation_penalty * rollout.truncated
        rewards = token_rewards(scores, self.kl.in_reward(rollout), rollout.mask)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, self.gamma, self.gae_lambda)
        if self.whiten_advantages:
            advantages = whiten(advantages, rollout.mask)
        self.kl.adapt(rollout)
        self.rollouts += 1
        return Batch.of(rollout, advantages, returns)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Σ_t m (policy + value_coef · value - entropy_coef · H + KL)."""
        assert batch.advantages is not None
        assert batch.returns is not None
        assert batch.values is not None
        assert output.values is not None
        log_ratio = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0)
        policy = clipped_policy_loss(
            log_ratio.exp(), batch.advantages, self.clip_range, self.clip_range_high, self.dual_clip
        )
        value = clipped_value_loss(output.values, batch.values, batch.returns, self.value_clip_range)
        moves = policy + self.kl.in_loss(output.logprobs, batch)
        if output.entropy is not None:
            moves = moves - self.entropy_coef * output.entropy
        total = moves * (self.rollouts > self.critic_warmup) + self.value_coef * value
        tokens, maxima = update_metrics(log_ratio, self.clip_range, self.clip_range_high)
        tokens |= {"loss/policy": policy.detach(), "loss/value": value.detach()}
        means = {name: (masked_sum(x, batch.mask), batch.mask.sum()) for name, x in tokens.items()}
        return LossOutput(masked_sum(total, batch.mask), means, maxima)

    def stop(self, metrics: dict[str, float]) -> bool:
        """The policy has gone far enough from the one that wrote the rollout."""
        return self.update_kl_limit is not None and metrics["kl/update"] > self.update_kl_limit

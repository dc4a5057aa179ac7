"""Group relative policy optimisation (Shao et al. 2024, DeepSeekMath) and Dr. GRPO (Liu et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import update_metrics
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import group_moments
from rlhf_lightning.functional.masked import masked_sum, row_sum
from rlhf_lightning.functional.policy_losses import clipped_policy_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class GRPO(PolicyGradient):
    """Advantages from the mean and standard deviation of a prompt's own responses; PPO's clipped loss; no critic."""

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 8
    """Responses that the policy writes to each prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps of one pass."""
    clip_range: float = 0.2
    """ε: how far below (and above) 1 the ratio counts."""
    clip_range_high: float | None = None
    """ε above 1, where it differs (0.28 in DAPO)."""
    aggregation: Literal["sequence", "token", "dr_grpo"] = "sequence"
    """`sequence`: mean over responses of the mean over their tokens (the paper); `token`: mean over all tokens of the step
    (DAPO); `dr_grpo`: sum over tokens divided by responses times `max_response_length`, and no standard deviation."""
    max_response_length: int | None = None
    """The constant that `dr_grpo` divides by; give it `max_new_tokens`."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.04, placement="loss", estimator="k3"))
    """The penalty for leaving the reference."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UserError: Dr. GRPO without the length it divides by.
        """
        super().__post_init__()
        if self.aggregation == "dr_grpo" and not self.max_response_length:
            raise UserError(
                "GRPO.aggregation dr_grpo divides by a fixed length: set GRPO.max_response_length to max_new_tokens"
            )

    def prepare(self, rollout: Rollout) -> Batch:
        """(R - mean of the group) / (std of the group + 1e-4); a group whose rewards are all equal gets 0."""
        valid = rollout.mask.any(-1)
        returns = rollout.rewards - row_sum(self.kl.in_reward(rollout), rollout.mask)
        mean, deviation = group_moments(returns, rollout.groups, valid)
        scale = 1.0 if self.aggregation == "dr_grpo" else deviation + 1e-4
        self.kl.adapt(rollout)
        return Batch.of(rollout, ((returns - mean) / scale * valid)[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """The clipped loss and the KL, each token weighted as `aggregation` says."""
        assert batch.advantages is not None
        log_ratio = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0)
        policy = clipped_policy_loss(log_ratio.exp(), batch.advantages, self.clip_range, self.clip_range_high)
        share = self._share(batch.mask)
        loss = masked_sum((policy + self.kl.in_loss(output.logprobs, batch)) * share, batch.mask)
        tokens, maxima = update_metrics(log_ratio, self.clip_range, self.clip_range_high)
        means = {name: (masked_sum(x, batch.mask), batch.mask.sum()) for name, x in tokens.items()}
        means["loss/policy"] = (masked_sum(policy.detach() * share, batch.mask), self.weight(batch))
        return LossOutput(loss, means, maxima)

    def _share(self, mask: Tensor) -> Tensor:
        if self.aggregation == "sequence":
            return 1 / mask.sum(-1, keepdim=True).clamp(min=1)
        dr_grpo = self.aggregation == "dr_grpo"
        return torch.tensor(1 / (self.max_response_length or 1) if dr_grpo else 1.0, device=mask.device)

    def weight(self, batch: Batch) -> Tensor:
        """Tokens for the mean over tokens, else responses."""
        return batch.mask.sum() if self.aggregation == "token" else batch.mask.any(-1).sum()

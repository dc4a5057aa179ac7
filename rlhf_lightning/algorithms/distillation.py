"""On-policy distillation from a teacher (Gu et al. 2023, MiniLLM, 2306.08543; Agarwal et al. 2023, GKD, 2306.13649)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.algorithms.diagnostics import token_means, update_metrics
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import discounted_to_go
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.functional.policy_losses import capped_policy_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class Distillation(Algorithm):
    """Minimise the reverse KL, the mean of log π - log teacher over the tokens that the policy generates.

    The teacher is `reference`, another model with the same vocabulary, and there is no reward. The gradient is that of
    -sg(min(r, cap)) A log π, with A_t = -Σ_{k≥t} γ^(k-t) (log π_old - log teacher)_k. Rollouts hold the log-probability of
    the generated token alone. The forward KL and the other divergences of GKD need the teacher's probabilities of all tokens, so
    this algorithm does not have them.
    """

    learns_from: ClassVar[tuple[str, ...]] = ("prompts",)
    needs_teacher: ClassVar[bool] = True

    responses_per_prompt: int = 1
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    gamma: float = 0.0
    """γ, the discount. 0: a token answers for its own divergence, as in GKD; 1: also for all that follow, the KL of responses."""
    ratio_cap: float = 2.0
    """The largest weight of a token, the ratio of the policy to the one that generated."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: the discount is outside [0, 1], or the cap is not positive.
        """
        super().__post_init__()
        if not 0 <= self.gamma <= 1:
            raise UserError(f"Distillation.gamma is {self.gamma}; set it to a number from 0 to 1")
        if self.ratio_cap <= 0:
            raise UserError(f"Distillation.ratio_cap is {self.ratio_cap}; set it to a positive number")

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute how much more likely the teacher finds each token, and those that follow it with the discount."""
        assert rollout.reference_logprobs is not None
        gap = kl_estimate(rollout.logprobs, rollout.reference_logprobs)
        return Batch.of(rollout, discounted_to_go(-gap, rollout.mask, self.gamma))

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the capped loss over the tokens under the mask."""
        assert batch.advantages is not None
        log_ratio = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0)
        policy = capped_policy_loss(log_ratio.exp(), batch.advantages, output.logprobs, self.ratio_cap)
        means, maxima = update_metrics(log_ratio, batch.mask, 1.0, self.ratio_cap - 1)
        means |= token_means({"loss/policy": policy.detach()}, batch.mask)
        return LossOutput(masked_sum(policy, batch.mask), means, maxima)

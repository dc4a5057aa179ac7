"""The penalty on the KL divergence from the reference, which all policy-gradient algorithms have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.kl import Estimator, kl_estimate, ratio_weighted
from rlhf_lightning.functional.masked import masked_mean
from rlhf_lightning.types import Batch, Rollout


@dataclass
class KLPenalty:
    """Penalise the KL divergence from the reference, in the reward or in the loss, with a fixed or an adaptive coefficient.

    An adaptive coefficient becomes β (1 + K·clip(kl/target - 1, -0.2, 0.2)) after every rollout (Ziegler et al. 2019, 2.2).
    """

    coef: float = 0.05
    """β, the penalty per nat."""
    placement: Literal["reward", "loss"] = "reward"
    """`reward`: subtract the KL of the policy that generated a token from its reward. `loss`: add the KL to the loss."""
    estimator: Estimator = "k1"
    """k1, k2 or k3 (Schulman 2020)."""
    target: float | None = None
    """Target of an adaptive coefficient, in nats per token; null keeps the coefficient fixed."""
    gain: float = 0.1
    """K, the step size of an adaptive coefficient."""
    ratio_weighted: bool | None = None
    """In the loss, multiply the estimate by the ratio to the policy that generated the token; only then is the gradient of k1 and
    k3 that of the KL divergence. null: multiply k1 and k3, and not k2, whose gradient is exact without. TRL has k3 with the ratio
    since 1.10; false is the k3 of the GRPO paper."""

    def __post_init__(self) -> None:
        """Check the options, and that they work together.

        Raises:
            UserError: a coefficient is negative or not finite, a gain or target is not positive or cannot be reached, k1 is an
                unweighted loss, or `ratio_weighted` is set for a penalty in the reward.
        """
        if not 0 <= self.coef < math.inf:
            raise UserError(f"kl.coef is {self.coef}; set it to 0 or a positive number")
        if not 0 < self.gain < math.inf:
            raise UserError(f"kl.gain is {self.gain}; set it to a positive number, for example 0.1")
        if self.target is not None and not 0 < self.target < math.inf:
            raise UserError(
                f"kl.target is {self.target}; set it to a positive number, or to null for a fixed coefficient"
            )
        if self.target is not None and self.coef == 0:
            raise UserError(
                "kl.coef is 0; adapting to kl.target multiplies it, so it would stay 0: set kl.coef above 0"
            )
        if self.placement == "loss" and self.estimator == "k1" and self.ratio_weighted is False:
            raise UserError(
                "kl.estimator is k1 and kl.ratio_weighted is false; in the loss it has an expected gradient of zero: set "
                "kl.ratio_weighted to null, or kl.estimator to k2"
            )
        if self.ratio_weighted and self.placement == "reward":
            raise UserError(
                "kl.ratio_weighted is true; it applies to a penalty in the loss, and kl.placement is reward: set kl.placement to "
                "loss, or remove kl.ratio_weighted"
            )

    def in_reward(self, rollout: Rollout) -> Tensor:
        """Return float32 [B, T], to subtract from each token's reward; zeros where there is none in the reward."""
        if self.coef == 0 or self.placement == "loss":
            return rollout.logprobs.new_zeros(rollout.mask.shape)
        assert rollout.reference_logprobs is not None
        kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs, self.estimator)
        return self.coef * kl * rollout.mask

    def in_loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """Return float32 [B, T], to add to each token's loss; zeros where there is none in the loss."""
        if self.coef == 0 or self.placement == "reward":
            return logprobs.new_zeros(logprobs.shape)
        assert batch.reference_logprobs is not None
        kl = kl_estimate(logprobs, batch.reference_logprobs, self.estimator)
        weighted = self.estimator != "k2" if self.ratio_weighted is None else self.ratio_weighted
        return self.coef * (ratio_weighted(kl, logprobs, batch.logprobs) if weighted else kl)

    def adapt(self, rollout: Rollout) -> None:
        """Adapt the coefficient to the KL divergence of this rollout, over all ranks; keep it where the rollout has no token."""
        if self.target is None:
            return
        assert rollout.reference_logprobs is not None
        kl = float(masked_mean(kl_estimate(rollout.logprobs, rollout.reference_logprobs), rollout.mask, math.nan))
        if math.isnan(kl):
            return
        self.coef *= 1 + self.gain * min(max(kl / self.target - 1, -0.2), 0.2)

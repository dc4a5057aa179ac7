"""The contract that every algorithm keeps, and the KL penalty that the online ones share."""

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
    """How far the policy may go from the reference: estimator, place and coefficient, fixed or adaptive.

    Adaptive (Ziegler et al. 2019, section 2.2): β ← β (1 + K·clip(kl/target - 1, -0.2, 0.2)) after every rollout.
    """

    coef: float = 0.05
    """β, the price of a nat."""
    placement: Literal["reward", "loss"] = "reward"
    """In the reward of each token (of the policy that wrote it, no gradient), or as a term of the loss."""
    estimator: Estimator = "k1"
    """k1, k2 or k3; as a loss k1 alone has no expected gradient."""
    target: float | None = None
    """Nats per token that an adaptive coefficient steers to; None keeps it fixed."""
    gain: float = 0.1
    """K of the adaptive coefficient."""
    ratio_weighted: bool = False
    """In the loss, weight the estimate by the ratio to the policy that wrote the token: k3's gradient is then exact."""

    def __post_init__(self) -> None:
        """Refuse what cannot penalise.

        Raises:
            UserError: a coefficient that is negative or no number, a target that is not positive or out of reach, k1 as an
                unweighted loss, or a weight for a loss that there is not.
        """
        if not 0 <= self.coef < math.inf:
            raise UserError(f"kl.coef is {self.coef}; it must be a number and not negative")
        if self.target is not None and self.target <= 0:
            raise UserError(f"kl.target is {self.target}; it must be positive, or null for a fixed coefficient")
        if self.target is not None and self.coef == 0:
            raise UserError("kl.coef is 0, which no kl.target can raise, as it is multiplied; begin above 0")
        if self.placement == "loss" and self.estimator == "k1" and not self.ratio_weighted:
            raise UserError(
                "kl.estimator k1 in the loss has an expected gradient of zero; use k2, or kl.ratio_weighted: true"
            )
        if self.ratio_weighted and self.placement == "reward":
            raise UserError("kl.ratio_weighted is of a penalty in the loss, and kl.placement is reward; set it to loss")

    def in_reward(self, rollout: Rollout) -> Tensor:
        """float32 [B, T]: what each token's reward is lowered by; zeros where the penalty is in the loss."""
        kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs, self.estimator)
        return (self.coef if self.placement == "reward" else 0.0) * kl * rollout.mask

    def in_loss(self, logprobs: Tensor, batch: Batch) -> Tensor:
        """float32 [B, T]: the term that each token adds to the loss; zeros where the penalty is in the reward."""
        if self.placement == "reward":
            return logprobs.new_zeros(logprobs.shape)
        kl = kl_estimate(logprobs, batch.reference_logprobs, self.estimator)
        return self.coef * (ratio_weighted(kl, logprobs, batch.logprobs) if self.ratio_weighted else kl)

    def adapt(self, rollout: Rollout) -> None:
        """Move the coefficient by what this rollout, over all ranks, measured."""
        if self.target is None:
            return
        kl = float(masked_mean(kl_estimate(rollout.logprobs, rollout.reference_logprobs), rollout.mask))
        self.coef *= 1 + self.gain * min(max(kl / self.target - 1, -0.2), 0.2)

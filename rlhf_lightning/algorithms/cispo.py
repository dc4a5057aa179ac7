"""CISPO (MiniMax 2025, 2506.13585), with the defaults of ScaleRL (Khatri et al. 2025, 2510.13786)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import batch_normalized, group_centered, group_normalized
from rlhf_lightning.functional.policy_losses import capped_policy_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class CISPO(PolicyGradient):
    """Minimise -sg(min(r, cap)) A log π as a mean over all tokens, A = (R - mean of the prompt's group) / a deviation.

    sg stops the gradient: a token beyond the cap keeps a gradient, with the weight of the cap. The cap is a ratio, as in ScaleRL
    and as `epsilon_high` in TRL. veRL clips r to 1 ± 0.2 under this name, which is another method.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 16
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 4
    """Optimiser steps per pass."""
    ratio_cap: float = 5.0
    """The largest weight of a token, a ratio of probabilities; ratios below it are kept."""
    scale: Literal["batch", "group"] = "batch"
    """The standard deviation that divides advantages: over the `batch` of all ranks (ScaleRL), or of the `group` (MiniMax)."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.0, placement="loss", estimator="k3"))
    """The penalty on the KL divergence from the reference; the papers have none."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Subtract the mean reward of the group, and divide by the standard deviation + 1e-4."""
        returns, valid = self.returns(rollout), rollout.mask.any(-1)
        if self.scale == "group":
            advantages = group_normalized(returns, rollout.groups, valid)
        else:
            advantages = batch_normalized(group_centered(returns, rollout.groups, valid), valid)
        self.kl.adapt(rollout)
        return Batch.of(rollout, advantages[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the capped loss over the tokens under the mask; `policy/clip_fraction` counts ratios above the cap."""
        assert batch.advantages is not None
        ratio = self.ratio(output, batch)
        policy = capped_policy_loss(ratio, batch.advantages, output.logprobs, self.ratio_cap)
        return policy_output(self, policy, output, batch, ratio=ratio, clip=(1.0, self.ratio_cap - 1))

"""Group relative policy optimisation (Shao et al. 2024, 2402.03300) and Dr. GRPO (Liu et al. 2025, 2503.20783)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import group_centered, group_normalized
from rlhf_lightning.functional.policy_losses import clipped_policy_loss, per_response
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class GRPO(PolicyGradient):
    """Minimise max(-A r, -A clip(r, 1 - ε, 1 + ε)) + β KL as a mean over responses, A = (R - mean) / std of the group.

    The group are the responses to a prompt, and r is π / π_old. `aggregation: dr_grpo` has A = R - mean and a fixed length.
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
    """ε above 1, where it differs (0.28 in DAPO); null: `clip_range`."""
    aggregation: Literal["sequence", "token", "dr_grpo"] = "sequence"
    """`sequence`: mean over responses of the mean over tokens (the paper); `token`: mean over all tokens of the step (DAPO);
    `dr_grpo`: sum over tokens, divided by responses times `max_response_length`; advantages without standard deviation."""
    max_response_length: int | None = None
    """The constant that `dr_grpo` divides by; set it to `generation.max_new_tokens`."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.04, placement="loss", estimator="k3"))
    """The penalty on the KL divergence from the reference."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: `dr_grpo` has no length to divide by.
        """
        super().__post_init__()
        if self.aggregation == "dr_grpo" and not self.max_response_length:
            raise UserError(
                "GRPO.aggregation is dr_grpo, which divides by a fixed length: set GRPO.max_response_length to the value of "
                "generation.max_new_tokens"
            )

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute (R - mean of the group) / (std of the group + 1e-4); 0 where all rewards of a group are equal."""
        normalize = group_centered if self.aggregation == "dr_grpo" else group_normalized
        advantages = normalize(self.returns(rollout), rollout.groups, rollout.mask.any(-1))
        self.kl.adapt(rollout)
        return Batch.of(rollout, advantages[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the clipped loss and the KL over the tokens, each weighted by `aggregation`."""
        assert batch.advantages is not None
        ratio, clip = self.ratio(output, batch), (self.clip_range, self.clip_range_high)
        policy = clipped_policy_loss(ratio, batch.advantages, *clip)
        return policy_output(self, policy, output, batch, self._token_weight(batch.mask), ratio, clip)

    def _token_weight(self, mask: Tensor) -> Tensor:
        if self.aggregation == "sequence":
            return per_response(mask)
        dr_grpo = self.aggregation == "dr_grpo"
        return torch.tensor(1 / (self.max_response_length or 1) if dr_grpo else 1.0, device=mask.device)

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of tokens for `token`, else the number of responses."""
        return batch.mask.sum() if self.aggregation == "token" else batch.mask.any(-1).sum()

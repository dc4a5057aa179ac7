"""DAPO (Yu et al. 2025, 2503.14476)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import group_normalized, overlong_penalty, rewards_differ
from rlhf_lightning.functional.policy_losses import clipped_policy_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class DAPO(PolicyGradient):
    """Minimise max(-A r, -A clip(r, 1 - ε_low, 1 + ε_high)) as a mean over all tokens, A = (R - mean) / std of the group.

    Prompts whose responses all have the same reward are replaced by further prompts (dynamic sampling), and long responses pay a
    penalty. There is no KL penalty.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 16
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 16
    """Optimiser steps per pass."""
    clip_range: float = 0.2
    """ε_low: the ratio is clipped to 1 - ε_low."""
    clip_range_high: float = 0.28
    """ε_high: the ratio is clipped to 1 + ε_high."""
    max_refills: int = 10
    """Dynamic sampling: further batches of prompts per rollout, in place of prompts whose rewards are all equal; 0: none."""
    max_response_length: int | None = None
    """Length in tokens at which the overlong penalty is whole; set it to `generation.max_new_tokens`. null: no penalty."""
    overlong_buffer: int = 4096
    """Tokens before `max_response_length` over which the penalty grows from 0 (section 3.4)."""
    overlong_penalty: float = 1.0
    """Subtracted from the reward of a response of `max_response_length` tokens."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.0, placement="loss", estimator="k3"))
    """The penalty on the KL divergence from the reference; the paper has none."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: the penalty would grow over more tokens than a response has.
        """
        super().__post_init__()
        if self.max_response_length is not None and self.overlong_buffer > self.max_response_length:
            raise UserError(
                f"DAPO.overlong_buffer is {self.overlong_buffer}; the penalty grows over the last tokens of a response of "
                f"DAPO.max_response_length {self.max_response_length}: set DAPO.overlong_buffer to {self.max_response_length} or "
                "less"
            )

    def teaches(self, rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor | None:
        """Mark the responses to prompts whose rewards differ; None where dynamic sampling is off."""
        return rewards_differ(rewards, groups, valid) if self.max_refills else None

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute (R - mean of the group) / (std of the group + 1e-4), R with the overlong penalty."""
        returns, valid = self.returns(rollout), rollout.mask.any(-1)
        if self.max_response_length is not None:
            limits = (self.max_response_length, self.overlong_buffer)
            returns = returns - self.overlong_penalty * overlong_penalty(rollout.mask.sum(-1), *limits)
        self.kl.adapt(rollout)
        return Batch.of(rollout, group_normalized(returns, rollout.groups, valid)[:, None] * rollout.mask)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the clipped loss over the tokens under the mask."""
        assert batch.advantages is not None
        ratio, clip = self.ratio(output, batch), (self.clip_range, self.clip_range_high)
        policy = clipped_policy_loss(ratio, batch.advantages, *clip)
        return policy_output(self, policy, output, batch, ratio=ratio, clip=clip)

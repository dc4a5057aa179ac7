"""REINFORCE with a choice of baselines (Williams 1992; RLOO: Ahmadian et al. 2024; REINFORCE++: Hu 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import leave_one_out
from rlhf_lightning.functional.masked import masked_mean, masked_moments, masked_sum, row_sum
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class REINFORCE(PolicyGradient):
    """Loss -A Σ_t log π a response, A = R - baseline; R is the score less β times the KL of the whole response."""

    state_fields: ClassVar[tuple[str, ...]] = ("kl.coef", "average")

    responses_per_prompt: int = 4
    """Responses that the policy writes to each prompt."""
    epochs: int = 1
    """Passes over each rollout; more than one is off-policy, and nothing here corrects for it."""
    minibatches: int = 1
    """Optimiser steps of one pass."""
    baseline: Literal["none", "moving", "batch", "leave_one_out"] = "leave_one_out"
    """What a return is compared with: nothing; a moving average of earlier rollouts; the mean of the rollout, divided by its
    standard deviation; the mean of the other responses to the same prompt."""
    moving_decay: float = 0.9
    """How much of the moving average stays after a rollout."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The penalty for leaving the reference."""

    def __post_init__(self) -> None:
        """Check, and start the moving average.

        Raises:
            UserError: leave-one-out with a single response a prompt, or a decay outside [0, 1).
        """
        super().__post_init__()
        if self.baseline == "leave_one_out" and self.responses_per_prompt < 2:
            raise UserError(
                f"REINFORCE.responses_per_prompt is {self.responses_per_prompt}; the baseline leave_one_out is the mean of "
                "the other responses and needs at least 2 (or choose baseline: moving)"
            )
        if not 0 <= self.moving_decay < 1:
            raise UserError(f"REINFORCE.moving_decay is {self.moving_decay}; it must be at least 0 and below 1")
        self.average: float | None = None

    def prepare(self, rollout: Rollout) -> Batch:
        """The return of each response less its baseline, on every token of it."""
        returns = rollout.rewards - row_sum(self.kl.in_reward(rollout), rollout.mask)
        advantages = self._advantages(returns, rollout) * rollout.mask.any(-1)
        self.kl.adapt(rollout)
        return Batch.of(rollout, advantages[:, None] * rollout.mask)

    def _advantages(self, returns: Tensor, rollout: Rollout) -> Tensor:
        valid = rollout.mask.any(-1)
        if self.baseline == "leave_one_out":
            return returns - leave_one_out(returns, rollout.groups, valid)
        if self.baseline == "batch":
            mean, variance = masked_moments(returns, valid)
            return (returns - mean) / (variance.sqrt() + 1e-8)
        if self.baseline == "none":
            return returns
        now, before = float(masked_mean(returns, valid)), self.average
        self.average = now if before is None else self.moving_decay * before + (1 - self.moving_decay) * now
        return returns - (now if before is None else before)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Σ -A log π, and the KL where it is in the loss."""
        assert batch.advantages is not None
        policy = -batch.advantages * output.logprobs
        loss = masked_sum(policy + self.kl.in_loss(output.logprobs, batch), batch.mask)
        update = masked_sum((batch.logprobs - output.logprobs).detach(), batch.mask)
        means = {"loss/policy": (masked_sum(policy.detach(), batch.mask), self.weight(batch))}
        return LossOutput(loss, {**means, "kl/update": (update, batch.mask.sum())})

    def weight(self, batch: Batch) -> Tensor:
        """Responses: the gradient is the mean over sequences."""
        return batch.mask.any(-1).sum()

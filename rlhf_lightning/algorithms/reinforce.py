"""REINFORCE (Williams 1992) with a choice of baselines, and reward-to-go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import leave_one_out, reward_to_go, token_rewards
from rlhf_lightning.functional.masked import masked_mean, masked_moments
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class REINFORCE(PolicyGradient):
    """Minimise -A log π, summed over the tokens of a response, as a mean over responses, A = R - baseline.

    R is the score minus β times the KL of the response.
    """

    state_fields: ClassVar[tuple[str, ...]] = ("kl.coef", "average")

    responses_per_prompt: int = 4
    """Responses that the policy generates per prompt."""
    epochs: int = 1
    """Passes over each rollout. More than one is off-policy, and the loss does not correct for it."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    baseline: Literal["none", "moving", "batch", "leave_one_out"] = "leave_one_out"
    """The baseline of a return. `none`: 0; `moving`: a moving average of earlier rollouts; `batch`: the mean of the rollout, and
    advantages divided by its standard deviation; `leave_one_out`: the mean of the other responses to the prompt."""
    moving_decay: float = 0.9
    """Weight of the earlier moving average in the next one."""
    reward_to_go: bool = False
    """The return of a token is the step rewards minus the KL penalties from itself on; False: that of the whole response."""
    kl: KLPenalty = field(default_factory=KLPenalty)
    """The penalty on the KL divergence from the reference."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters, and start the moving average.

        Raises:
            UserError: `leave_one_out` has a single response per prompt, or the decay is outside [0, 1).
        """
        super().__post_init__()
        if self.baseline == "leave_one_out" and self.responses_per_prompt < 2:
            raise UserError(
                f"REINFORCE.responses_per_prompt is {self.responses_per_prompt}; the baseline leave_one_out is the mean of the "
                "other responses: set it to 2 or more, or set REINFORCE.baseline to moving"
            )
        if not 0 <= self.moving_decay < 1:
            raise UserError(f"REINFORCE.moving_decay is {self.moving_decay}; set it to a number from 0 to below 1")
        self.average: float | None = None

    def prepare(self, rollout: Rollout) -> Batch:
        """Compute the return of each response, or of each of its tokens, minus the baseline of the response."""
        returns = self.returns(rollout)
        baseline, scale = self._baseline_and_scale(returns, rollout)
        baseline = baseline * torch.ones_like(returns)
        following = returns[:, None].expand(rollout.mask.shape)
        if self.reward_to_go:
            penalties = self.kl.in_reward(rollout)
            following = reward_to_go(token_rewards(rollout.rewards, penalties, rollout.mask, rollout.step_rewards))
        self.kl.adapt(rollout)
        return Batch.of(rollout, (following - baseline[:, None]) / scale * rollout.mask)

    def _baseline_and_scale(self, returns: Tensor, rollout: Rollout) -> tuple[Tensor | float, Tensor | float]:
        valid = rollout.mask.any(-1)
        if self.baseline == "leave_one_out":
            return leave_one_out(returns, rollout.groups, valid), 1.0
        if self.baseline == "batch":
            center, variance = masked_moments(returns, valid)
            return center, variance.sqrt() + 1e-8
        if self.baseline == "none":
            return 0.0, 1.0
        mean, average = float(masked_mean(returns, valid, math.nan)), self.average
        if math.isnan(mean):  # a rollout in which nothing has a score is no part of the average
            return 0.0, 1.0
        self.average = mean if average is None else self.moving_decay * average + (1 - self.moving_decay) * mean
        return (mean if average is None else average), 1.0

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum -A log π, and the KL where it is in the loss, over the tokens under the mask."""
        assert batch.advantages is not None
        return policy_output(self, -batch.advantages * output.logprobs, output, batch)

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of responses: the loss is a mean over sequences."""
        return batch.mask.any(-1).sum()

"""RAFT: rejection-sampling fine-tuning, best of n (Dong et al. 2023, 2304.06767)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.algorithms.diagnostics import policy_output
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.functional.advantages import best_of_group
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class RAFT(PolicyGradient):
    """Minimise -log π as a mean over the tokens of the best response to each prompt, by R.

    Responses of equal R are all kept if they are the best; a prompt whose responses all have the same R is skipped.
    It is supervised fine-tuning on the policy's own best responses, so it may pass over a rollout several times. With `kl` in the
    reward, R is the reward minus β times the KL of the response.
    """

    min_responses: ClassVar[int] = 2

    responses_per_prompt: int = 8
    """n, the responses of which the best is kept."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    kl: KLPenalty = field(default_factory=lambda: KLPenalty(coef=0.0))
    """The penalty on the KL divergence from the reference; by default none."""

    def prepare(self, rollout: Rollout) -> Batch:
        """Empty the masks of all responses but the best ones to each prompt."""
        best = best_of_group(self.returns(rollout), rollout.groups, rollout.mask.any(-1))
        self.kl.adapt(rollout)
        mask = rollout.mask & best[:, None]
        return Batch.of(replace(rollout, mask=mask), mask.to(rollout.logprobs.dtype))

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum -log π over the tokens of the kept responses."""
        assert batch.advantages is not None
        return policy_output(self, -batch.advantages * output.logprobs, output, batch)

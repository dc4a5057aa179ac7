"""SimPO (Meng et al. 2024, 2405.14734): preference optimisation by mean log-probabilities, without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.algorithms.pairwise import Pairwise, pair_output, probabilities
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import row_mean
from rlhf_lightning.functional.preference_losses import simpo_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput


@dataclass
class SimPO(Pairwise):
    """Minimise -log σ(β(c - j) - γ), of the mean log-probabilities c and j per token of both responses (eq. 6).

    It reads no reference: set `reference: none`. TRL computes it as a loss of CPO, with an NLL term unless `cpo_alpha` is 0.
    """

    responses_per_prompt: int = 2
    """Responses that the policy generates per prompt; not used with recorded pairs."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    beta: float = 2.5
    """β, the scale of the difference of mean log-probabilities."""
    gamma: float = 1.375
    """γ, the margin by which the chosen response must be better, in units of β times nats per token; 0 for none."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: β is not positive, or γ is negative.
        """
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"SimPO.beta is {self.beta}; set it to a positive number")
        if self.gamma < 0:
            raise UserError(f"SimPO.gamma is {self.gamma}; set it to 0 or a positive number")

    @property
    def needs_reference(self) -> bool:
        """Return False: the loss reads the policy alone."""
        return False

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the loss over pairs."""
        mean = row_mean(output.logprobs, batch.mask)
        chosen, rejected = mean[0::2], mean[1::2]
        losses = simpo_loss(chosen, rejected, self.beta, self.gamma, probabilities(batch))
        return pair_output(losses, chosen - rejected, self.beta, batch, output)

"""ORPO (Hong et al. 2024, 2403.07691): supervised fine-tuning on the chosen response with an odds-ratio penalty, no reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_lightning.algorithms.pairwise import Pairwise, pair_output, probabilities
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import row_mean
from rlhf_lightning.functional.preference_losses import log_odds, odds_ratio_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput


@dataclass
class ORPO(Pairwise):
    """Minimise NLL(c) - λ log σ(log odds_c - log odds_j), with odds = P / (1 - P) and log P the mean per token (eq. 6 and 7).

    The NLL is the mean over the tokens of the chosen response, as in the paper; TRL takes the tokens of all prompts and chosen
    responses of a batch. For a pair of probability p the NLL has no soft form and is weighted by 2p - 1. The loss reads no
    reference: set `reference: none`.
    """

    responses_per_prompt: int = 2
    """Responses that the policy generates per prompt; not used with recorded pairs."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    odds_ratio_coef: float = 0.1
    """λ, the weight of the odds-ratio loss; TRL calls it beta."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: λ is not positive.
        """
        super().__post_init__()
        if not 0 < self.odds_ratio_coef < math.inf:
            raise UserError(f"ORPO.odds_ratio_coef is {self.odds_ratio_coef}; set it to a positive number")

    @property
    def needs_reference(self) -> bool:
        """Return False: the loss reads the policy alone."""
        return False

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the loss over pairs."""
        mean, p = row_mean(output.logprobs, batch.mask), probabilities(batch)
        chosen, rejected = mean[0::2], mean[1::2]
        nll = (2 * p - 1) * -chosen
        losses = nll + self.odds_ratio_coef * odds_ratio_loss(chosen, rejected, p)
        return pair_output(losses, log_odds(chosen) - log_odds(rejected), 1.0, batch, output, nll=nll)

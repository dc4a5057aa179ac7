"""Direct preference optimisation, offline and online (Rafailov et al. 2023; IPO: Azar et al. 2023; online: Guo et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.algorithms.pairwise import Pairwise, pair_output, probabilities
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import row_sum
from rlhf_lightning.functional.preference_losses import PreferenceLoss, preference_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput


@dataclass
class DPO(Pairwise):
    """Prefer the best response to a prompt over the worst, or the chosen response of a recorded pair over the rejected one."""

    responses_per_prompt: int = 2
    """Responses that the policy generates per prompt; not used with recorded pairs."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    beta: float = 0.1
    """β, the strength of the implicit KL penalty."""
    loss_type: PreferenceLoss = "sigmoid"
    """`sigmoid` (DPO), `ipo` (the paper's) or `ipo_length_normalized` (TRL's)."""
    label_smoothing: float = 0.0
    """ε of conservative DPO: the assumed fraction of wrong labels. A recorded probability p counts as p(1 - ε) + (1 - p)ε."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: β is not positive, or the smoothing is outside [0, 0.5).
        """
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"DPO.beta is {self.beta}; set it to a positive number")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"DPO.label_smoothing is {self.label_smoothing}; set it to a number from 0 to below 0.5")

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the preference loss over pairs, of D = Σ_t (log π - log ref) of the chosen and the rejected response."""
        assert batch.reference_logprobs is not None
        drift, lengths = row_sum(output.logprobs - batch.reference_logprobs, batch.mask), batch.mask.sum(-1)
        chosen, rejected = drift[0::2], drift[1::2]
        options = (self.beta, self.loss_type, self.label_smoothing)
        losses = preference_loss(chosen, rejected, lengths[0::2], lengths[1::2], *options, probabilities(batch))
        return pair_output(losses, chosen - rejected, self.beta, batch, output)

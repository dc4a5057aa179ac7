"""Direct preference optimisation, offline and online (Rafailov et al. 2023, 2305.18290; online: Guo et al. 2024, 2402.04792).

Its variants are options that combine: `loss_type` (IPO: Azar et al. 2023, 2310.12036; hinge: 2309.06657; APO-zero: 2408.06266),
`label_smoothing` and `robust` (Chowdhury et al. 2024, 2403.00409), `nll_coef` (RPO: Pang et al. 2024, 2404.19733) and `ld_alpha`
(LD-DPO: Liu et al. 2024, 2409.06411).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_lightning.algorithms.pairwise import Pairwise, pair_output, probabilities
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import row_mean
from rlhf_lightning.functional.preference_losses import PreferenceLoss, length_desensitized, preference_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput


@dataclass
class DPO(Pairwise):
    """Minimise -log σ(β(D_c - D_j)) per pair, D = Σ_t (log π - log ref) of the chosen and the rejected response.

    The pair is the best and the worst of several responses by reward, or a recorded one.
    """

    responses_per_prompt: int = 2
    """Responses that the policy generates per prompt; not used with recorded pairs."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    beta: float = 0.1
    """β, the strength of the implicit KL penalty."""
    loss_type: PreferenceLoss = "sigmoid"
    """`sigmoid` (DPO), `ipo` (the paper's), `ipo_length_normalized` (TRL's), `hinge`, or `apo_zero`, which
    raises the chosen response and lowers the rejected one, each by itself."""
    label_smoothing: float = 0.0
    """ε of conservative DPO: the assumed fraction of wrong labels. A recorded probability p counts as p(1 - ε) + (1 - p)ε."""
    robust: bool = False
    """Correct the loss for the fraction `label_smoothing` of wrong labels: its expectation is the loss of the true labels."""
    nll_coef: float = 0.0
    """α of RPO: weight of the negative log-likelihood per token of the chosen response; times 2p - 1 with soft labels."""
    ld_alpha: float = 1.0
    """α of LD-DPO: weight of the tokens behind the length of the shorter response; 0.5 is usual, 1 is DPO."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: β is not positive, a coefficient is outside of its range, or `robust` has no fraction to correct for.
        """
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"DPO.beta is {self.beta}; set it to a positive number")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"DPO.label_smoothing is {self.label_smoothing}; set it to a number from 0 to below 0.5")
        if self.robust and not self.label_smoothing:
            raise UserError(
                "DPO.robust is true, and DPO.label_smoothing, the fraction of wrong labels that it corrects for, is 0; set "
                "DPO.label_smoothing above 0, for example to 0.1"
            )
        if not 0 <= self.nll_coef < math.inf:
            raise UserError(f"DPO.nll_coef is {self.nll_coef}; set it to 0 or a positive number")
        if not 0 <= self.ld_alpha <= 1:
            raise UserError(f"DPO.ld_alpha is {self.ld_alpha}; set it to a number from 0 to 1")

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the preference loss over pairs, of D = Σ_t (log π - log ref) of the chosen and the rejected response."""
        assert batch.reference_logprobs is not None
        drift = length_desensitized(output.logprobs - batch.reference_logprobs, batch.mask, self.ld_alpha)
        (chosen, rejected), lengths, p = (drift[0::2], drift[1::2]), batch.mask.sum(-1), probabilities(batch)
        options = (self.beta, self.loss_type, self.label_smoothing, p, self.robust)
        losses = preference_loss(chosen, rejected, lengths[0::2], lengths[1::2], *options)
        if not self.nll_coef:
            return pair_output(losses, chosen - rejected, self.beta, batch, output)
        nll = (2 * p - 1) * -row_mean(output.logprobs, batch.mask)[0::2]
        return pair_output(losses + self.nll_coef * nll, chosen - rejected, self.beta, batch, output, nll=nll)

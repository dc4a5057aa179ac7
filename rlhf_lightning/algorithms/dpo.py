"""Direct preference optimisation, offline and online (Rafailov et al. 2023; IPO: Azar et al. 2023; online: Guo et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import best_and_worst
from rlhf_lightning.functional.masked import masked_sum, row_sum
from rlhf_lightning.functional.preference_losses import PreferenceLoss, preference_agreement, preference_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class DPO(Algorithm):
    """Prefer the best response to a prompt over the worst; the two responses of a recorded pair have rewards 1 and 0."""

    rows_per_loss_group: ClassVar[int] = 2
    min_responses: ClassVar[int] = 2
    learns_from: ClassVar[tuple[str, ...]] = ("rewards", "pairs")
    prepare_reads_logprobs: ClassVar[bool] = False

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
    """ε of conservative DPO: the assumed fraction of wrong labels."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: β is not positive, the smoothing is outside [0, 0.5), or `loss_type` has no smoothing.
        """
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"DPO.beta is {self.beta}; set it to a positive number")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"DPO.label_smoothing is {self.label_smoothing}; set it to a number from 0 to below 0.5")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise UserError(
                f"DPO.label_smoothing is {self.label_smoothing}; loss_type {self.loss_type} has no smoothing: set "
                "DPO.loss_type to sigmoid, or remove DPO.label_smoothing"
            )

    def prepare(self, rollout: Rollout) -> Batch:
        """Order the rows in pairs, the chosen response first; rows outside pairs, and tied pairs, get an empty mask."""
        best, worst, differ = best_and_worst(rollout.rewards, rollout.groups, rollout.mask.any(-1))
        pairs = torch.stack([best, worst], dim=1).flatten()
        unpaired = torch.ones(len(rollout), dtype=torch.bool, device=pairs.device).index_fill_(0, pairs, False)
        order = torch.cat([pairs, torch.nonzero(unpaired).flatten()])
        counted = torch.zeros(len(rollout), dtype=torch.bool, device=pairs.device)
        counted[: len(pairs)] = differ.repeat_interleave(2)
        batch = Batch.of(rollout.rows(order))
        batch.mask.logical_and_(counted[:, None])
        return batch

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the preference loss over pairs, of D = Σ_t (log π - log ref) of the chosen and the rejected response."""
        assert batch.reference_logprobs is not None
        drift = row_sum(output.logprobs - batch.reference_logprobs, batch.mask)
        lengths, counted = batch.mask.sum(-1), batch.mask[0::2].any(-1)
        chosen, rejected = drift[0::2], drift[1::2]
        losses = preference_loss(
            chosen, rejected, lengths[0::2], lengths[1::2], self.beta, self.loss_type, self.label_smoothing
        )
        margin = self.beta * (chosen - rejected).detach()
        values = {"loss/policy": losses.detach(), "preference/margin": margin}
        values["preference/accuracy"] = preference_agreement((chosen - rejected).detach())
        means = {name: (masked_sum(value, counted), counted.sum()) for name, value in values.items()}
        update = masked_sum((batch.logprobs - output.logprobs).detach(), batch.mask)
        return LossOutput(masked_sum(losses, counted), {**means, "kl/update": (update, batch.mask.sum())})

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of pairs that are not tied."""
        return batch.mask[0::2].any(-1).sum()

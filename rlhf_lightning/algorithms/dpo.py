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
    """The best response of a prompt against its worst; recorded pairs are prompts whose two responses have rewards 1 and 0."""

    rows_per_loss_group: ClassVar[int] = 2
    min_responses: ClassVar[int] = 2
    learns_from_pairs: ClassVar[bool] = True
    prepare_reads_logprobs: ClassVar[bool] = False

    responses_per_prompt: int = 2
    """Responses that the policy writes to each prompt when it learns online."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimiser steps of one pass."""
    beta: float = 0.1
    """β, how strongly the policy is held to the reference."""
    loss_type: PreferenceLoss = "sigmoid"
    """`sigmoid` (DPO), `ipo` (the paper's), `ipo_length_normalized` (TRL's)."""
    label_smoothing: float = 0.0
    """ε of conservative DPO: how often the labels are taken to be wrong."""

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UserError: β not positive, a smoothing that is not below one half, or one of a loss without labels.
        """
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"DPO.beta is {self.beta}; it must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"DPO.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 0.5")
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise UserError(f"DPO.label_smoothing changes loss_type sigmoid alone, and loss_type is {self.loss_type}")

    def prepare(self, rollout: Rollout) -> Batch:
        """Rows in pairs, the chosen response first; rows of no pair, and of tied ones, get an empty mask."""
        best, worst, differ = best_and_worst(rollout.rewards, rollout.groups, rollout.mask.any(-1))
        pairs = torch.stack([best, worst], dim=1).flatten()
        others = torch.ones(len(rollout), dtype=torch.bool, device=pairs.device).index_fill_(0, pairs, False)
        order = torch.cat([pairs, torch.nonzero(others).flatten()])
        real = torch.zeros(len(rollout), dtype=torch.bool, device=pairs.device)
        real[: len(pairs)] = differ.repeat_interleave(2)
        batch = Batch.of(rollout.rows(order))
        batch.mask.logical_and_(real[:, None])
        return batch

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Σ over pairs; D = Σ_t log π - log ref."""
        drift = row_sum(output.logprobs - batch.reference_logprobs, batch.mask)
        lengths, real = batch.mask.sum(-1), batch.mask[0::2].any(-1)
        chosen, rejected = drift[0::2], drift[1::2]
        losses = preference_loss(
            chosen, rejected, lengths[0::2], lengths[1::2], self.beta, self.loss_type, self.label_smoothing
        )
        margin = self.beta * (chosen - rejected).detach()
        logged = {"loss/policy": losses.detach(), "preference/margin": margin}
        logged["preference/accuracy"] = preference_agreement((chosen - rejected).detach())
        means = {name: (masked_sum(x, real), real.sum()) for name, x in logged.items()}
        update = masked_sum((batch.logprobs - output.logprobs).detach(), batch.mask)
        return LossOutput(masked_sum(losses, real), {**means, "kl/update": (update, batch.mask.sum())})

    def weight(self, batch: Batch) -> Tensor:
        """Pairs that are not tied."""
        return batch.mask[0::2].any(-1).sum()

"""Kahneman-Tversky optimisation of responses that are labelled one by one (Ethayarajh et al. 2024, 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import masked_mean, masked_sum, row_sum
from rlhf_lightning.functional.preference_losses import kto_loss
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


@dataclass
class KTO(Algorithm):
    """Minimise λ_D (1 - σ(β(D - z))) for good and λ_U (1 - σ(β(z - D))) for bad responses, D = Σ_t (log π - log ref).

    z estimates the KL divergence: the mean D of each prompt with the response to the next prompt of the global batch, 0 at least,
    without gradient. It is measured once per rollout, over all ranks; TRL measures it in every micro-batch.
    """

    learns_from: ClassVar[tuple[str, ...]] = ("labels",)
    mismatched_rows: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = ("z",)

    responses_per_prompt: int = field(default=1, init=False)
    """Recorded responses: 1 per row."""
    epochs: int = 1
    """Passes over each rollout; z stays that of its beginning."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    beta: float = 0.1
    """β, the strength of the implicit KL penalty."""
    desirable_weight: float = 1.0
    """λ_D, the weight of good responses. With n_D good and n_U bad ones, the paper has λ_D n_D / (λ_U n_U) between 1 and 4/3."""
    undesirable_weight: float = 1.0
    """λ_U, the weight of bad responses."""

    def __post_init__(self) -> None:
        """Check the hyper-parameters.

        Raises:
            UserError: β is not positive, or a weight is negative.
        """
        super().__post_init__()
        if self.beta <= 0:
            raise UserError(f"KTO.beta is {self.beta}; set it to a positive number")
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"KTO.{name} is {getattr(self, name)}; set it to 0 or a positive number")
        self.z = 0.0

    def prepare(self, rollout: Rollout) -> Batch:
        """Measure z on the mismatched rows of all ranks, and empty their masks."""
        assert rollout.mismatched is not None
        assert rollout.reference_logprobs is not None
        drift = row_sum(rollout.logprobs - rollout.reference_logprobs, rollout.mask)
        self.z = max(0.0, float(masked_mean(drift, rollout.mismatched & rollout.mask.any(-1))))
        return Batch.of(replace(rollout, mask=rollout.mask & ~rollout.mismatched[:, None]))

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Sum the loss over responses."""
        assert batch.reference_logprobs is not None
        drift, counted = row_sum(output.logprobs - batch.reference_logprobs, batch.mask), batch.mask.any(-1)
        good = batch.rewards > 0.5
        losses = kto_loss(drift, good, self.z, self.beta, self.desirable_weight, self.undesirable_weight)
        means = {"loss/policy": (masked_sum(losses.detach(), counted), counted.sum())}
        for name, rows in (("good", counted & good), ("bad", counted & ~good)):
            means[f"implicit_reward/{name}"] = (masked_sum(self.beta * drift.detach(), rows), rows.sum())
        update = masked_sum((batch.logprobs - output.logprobs).detach(), batch.mask)
        return LossOutput(masked_sum(losses, counted), {**means, "kl/update": (update, batch.mask.sum())})

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of responses: the loss is a mean over them."""
        return batch.mask.any(-1).sum()

    def metrics(self) -> dict[str, float]:
        """Return z, in nats per response."""
        return {"kl/mismatched": self.z}

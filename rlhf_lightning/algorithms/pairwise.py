"""The base class of algorithms that compare two responses to a prompt, recorded or generated."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.functional.advantages import best_and_worst
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.functional.preference_losses import preference_agreement
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


class Pairwise(Algorithm):
    """An algorithm whose loss reads a chosen and a rejected response in adjacent rows; the mean is over pairs.

    `prepare` takes the best and the worst response to each prompt by reward. Those of a recorded pair have rewards 1 and 0, and
    `preferences` beside them.
    """

    rows_per_loss_group: ClassVar[int] = 2
    min_responses: ClassVar[int] = 2
    learns_from: ClassVar[tuple[str, ...]] = ("rewards", "pairs")
    prepare_reads_logprobs: ClassVar[bool] = False

    def prepare(self, rollout: Rollout) -> Batch:
        """Order the rows in pairs, the chosen response first; rows outside pairs, and tied pairs, get an empty mask."""
        best, worst, differ = best_and_worst(rollout.rewards, rollout.groups, rollout.mask.any(-1))
        pairs = torch.stack([best, worst], dim=1).flatten()
        unpaired = torch.ones(len(rollout), dtype=torch.bool, device=pairs.device).index_fill_(0, pairs, False)
        batch = Batch.of(rollout.rows(torch.cat([pairs, torch.nonzero(unpaired).flatten()])))
        counted = torch.zeros(len(rollout), dtype=torch.bool, device=pairs.device)
        counted[: len(pairs)] = differ.repeat_interleave(2)
        batch.mask.logical_and_(counted[:, None])
        return batch

    def weight(self, batch: Batch) -> Tensor:
        """Return the number of pairs that are not tied."""
        return batch.mask[0::2].any(-1).sum()


def probabilities(batch: Batch) -> Tensor:
    """Return float32 [pairs]: the probability that the chosen response of a pair is the better one."""
    if batch.preferences is None:
        return torch.ones(len(batch) // 2, device=batch.mask.device)
    return batch.preferences[0::2]


def pair_output(
    losses: Tensor, margin: Tensor, scale: float, batch: Batch, output: PolicyOutput, **terms: Tensor
) -> LossOutput:
    """Sum the losses of pairs, and measure how the policy prefers the chosen responses.

    Args:
        losses: float32 [pairs].
        margin: float32 [pairs], in nats; above 0 where the policy prefers the chosen response. Accuracy skips pairs of
            probability ½.
        scale: of the margin that is logged.
        batch: the rows of the pairs.
        output: of the policy.
        terms: further values to log as `loss/<name>`, float32 [pairs].
    """
    margin, counted = margin.detach(), batch.mask[0::2].any(-1)
    values = {"loss/policy": losses, "preference/margin": scale * margin}
    values |= {f"loss/{name}": value for name, value in terms.items()}
    means = {name: (masked_sum(value.detach(), counted), counted.sum()) for name, value in values.items()}
    decided = counted & (probabilities(batch) != 0.5)
    means["preference/accuracy"] = (masked_sum(preference_agreement(margin), decided), decided.sum())
    update = masked_sum((batch.logprobs - output.logprobs).detach(), batch.mask)
    return LossOutput(masked_sum(losses, counted), {**means, "kl/update": (update, batch.mask.sum())})

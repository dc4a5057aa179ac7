"""Correction for rollouts of an engine whose log-probabilities differ from those of the model that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import masked_mean, row_sum
from rlhf_lightning.types import Batch


@dataclass
class Correction:
    """Multiply advantages by truncated importance weights, the ratio of trainer to generator (Yao et al. 2025).

    A policy loss is linear in a positive factor of its advantages, so one correction of a rollout serves every algorithm with
    advantages. The number of tokens by which a loss is divided stays.
    """

    cap: float = 2.0
    """The largest weight."""
    level: Literal["token", "sequence"] = "token"
    """`token`: each token has the ratio of its own probabilities; `sequence`: all tokens have that of the response."""
    drop_outside: tuple[float, float] | None = None
    """Ratios outside this range get the weight 0, for example (0.5, 5); null keeps all."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            UserError: the cap is not positive, or the range is empty.
        """
        if not 0 < self.cap < math.inf:
            raise UserError(f"correction.cap is {self.cap}; set it to a positive number, for example to 2.0")
        if self.drop_outside is not None and not 0 <= self.drop_outside[0] < self.drop_outside[1]:
            raise UserError(
                f"correction.drop_outside is {list(self.drop_outside)}; set it to a range of ratios, for example to [0.5, 5]"
            )

    def weights(self, batch: Batch) -> Tensor:
        """Return float32 [B, T], the weight of each token's advantage; 1 off the mask."""
        log_ratio = log_ratio_of(batch)
        if self.level == "sequence":
            log_ratio = row_sum(log_ratio, batch.mask)[:, None].expand_as(log_ratio)
        ratio = torch.where(batch.mask, log_ratio, 0).exp()
        weights = ratio.clamp(max=self.cap)
        if self.drop_outside is None:
            return weights
        low, high = self.drop_outside
        return torch.where((ratio < low) | (ratio > high), 0, weights)

    def apply(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Correct the advantages of a rollout; every rank must call this method.

        Returns:
            The batch, and the metric `generator/weight`, the mean weight of a token over all ranks.

        Raises:
            UserError: the algorithm has no advantages.
        """
        if batch.advantages is None:
            raise UserError(
                "model.correction is set, and the algorithm has no advantages to weigh: remove model.correction, or use an "
                "algorithm such as PPO or GRPO"
            )
        weights = self.weights(batch)
        mean = float(masked_mean(weights, batch.mask, math.nan))
        return replace(batch, advantages=batch.advantages * weights), {"generator/weight": mean}


def log_ratio_of(batch: Batch) -> Tensor:
    """Return float32 [B, T]: log-probabilities of the trainer minus those of the generator, 0 off the mask."""
    assert batch.generator_logprobs is not None
    return torch.where(batch.mask, batch.logprobs - batch.generator_logprobs, 0)

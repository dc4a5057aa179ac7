"""Compute losses of policies and critics elementwise; the stage divides their sum."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float | None = None, dual_clip: float | None = None
) -> Tensor:
    """Compute the negative of PPO's clipped objective (Schulman et al. 2017, eq. 7), elementwise.

        max(-A r, -A clip(r, 1 - ε_low, 1 + ε_high))

    `clip_high` None means `clip_low`. With `dual_clip` c the loss is at most -c A for A < 0 (Ye et al. 2020, eq. 5).

    >>> clipped_policy_loss(torch.tensor(1.5), torch.tensor(1.0), 0.2)
    tensor(-1.2000)
    """
    clipped = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> Tensor:
    """Compute ½ max((V - R)², (clip(V, V_old ± ε) - R)²), elementwise; `clip_range` None does not clip."""
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error

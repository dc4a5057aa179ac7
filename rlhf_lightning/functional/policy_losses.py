"""Compute losses of policies and critics elementwise; the stage divides their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.masked import row_mean, row_sum


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


def capped_policy_loss(ratio: Tensor, advantages: Tensor, logprobs: Tensor, cap: float) -> Tensor:
    """Compute -sg(min(r, cap)) A log π, elementwise (MiniMax 2025, CISPO, eq. 4); sg: the weight has no gradient.

    >>> capped_policy_loss(torch.tensor([0.5, 9.0]), torch.tensor([1.0, 1.0]), torch.tensor([-2.0, -2.0]), 5.0)
    tensor([ 1., 10.])
    """
    return -ratio.clamp(max=cap).detach() * advantages * logprobs


def sequence_ratio(log_ratio: Tensor, mask: Tensor, mean: bool) -> Tensor:
    """Compute the ratio of a whole response for each of its tokens; [B, T], 1 off the mask.

    Args:
        log_ratio: float32 [B, T]; log π - log π_old.
        mask: bool [B, T].
        mean: exp(mean_t), the geometric mean over tokens (Zheng et al. 2025, GSPO, eq. 7), or else exp(Σ_t).
    """
    rows = (row_mean if mean else row_sum)(log_ratio, mask)
    return torch.where(mask, rows[:, None], 0).exp()


def per_response(mask: Tensor) -> Tensor:
    """Weigh tokens so that their sum is a mean over each response; float32 [B, 1]."""
    return 1 / mask.sum(-1, keepdim=True).clamp(min=1)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> Tensor:
    """Compute ½ max((V - R)², (clip(V, V_old ± ε) - R)²), elementwise; `clip_range` None does not clip."""
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error

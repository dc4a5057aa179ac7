"""Losses as pure functions of tensors; none of them divides, the stage does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PreferenceLoss = Literal["sigmoid", "ipo", "ipo_length_normalized"]


def clipped_policy_loss(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float | None = None, dual_clip: float | None = None
) -> Tensor:
    """PPO's clipped objective with its sign turned (Schulman et al. 2017, eq. 7), elementwise.

        max(-A r, -A clip(r, 1 - ε_low, 1 + ε_high))

    `clip_high` None is `clip_low`; with `dual_clip` c it is never more than -c A for A < 0 (Ye et al. 2020, eq. 5).

    >>> clipped_policy_loss(torch.tensor(1.5), torch.tensor(1.0), 0.2)
    tensor(-1.2000)
    """
    clipped = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> Tensor:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²), elementwise; no clipping where `clip_range` is None."""
    error = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    kind: PreferenceLoss,
    label_smoothing: float,
) -> Tensor:
    """One loss a pair from D = Σ_t log π - log ref of its two responses; all arguments [pairs].

    sigmoid: -(1-ε) logσ(βΔ) - ε logσ(-βΔ), Δ = D_c - D_j (Rafailov et al. 2023, eq. 7; ε > 0: conservative DPO)
    ipo: (Δ - 1/(2β))² (Azar et al. 2023, eq. 17)
    ipo_length_normalized: the same with each D divided by its length, as TRL computes it
    """
    margin = chosen - rejected
    if kind == "sigmoid":
        agree, disagree = logsigmoid(beta * margin), logsigmoid(-beta * margin)
        return -(1 - label_smoothing) * agree - label_smoothing * disagree
    if kind == "ipo_length_normalized":
        margin = chosen / chosen_length.clamp(min=1) - rejected / rejected_length.clamp(min=1)
    return (margin - 1 / (2 * beta)).square()


def agreement(margin: Tensor) -> Tensor:
    """1 where a margin in nats prefers the chosen response, 0 where it prefers the rejected one, ½ where it prefers neither.

    Less than 1e-4 nats is the rounding of two passes over the same weights.

    >>> agreement(torch.tensor([0.5, -0.5, 1e-6]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    return 0.5 + 0.5 * torch.sign(torch.where(margin.abs() < 1e-4, margin.new_zeros(()), margin))


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, centering: float) -> Tensor:
    """-logσ(s_c - s_j - margin) + λ(s_c + s_j)², one a pair (Ouyang et al. 2022, eq. 1; Eisenstein et al. 2023, eq. 2).

    >>> bradley_terry_loss(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0), 0.0)
    tensor(0.6931)
    """
    return -logsigmoid(chosen - rejected - margin) + centering * (chosen + rejected).square()

"""Compute losses of pairs of responses elementwise; the stage divides their sum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PreferenceLoss = Literal["sigmoid", "ipo", "ipo_length_normalized"]


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    kind: PreferenceLoss,
    label_smoothing: float,
) -> Tensor:
    """Compute one loss per pair from D = Σ_t log π - log ref of its two responses; all tensors are [pairs].

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


def preference_agreement(margin: Tensor) -> Tensor:
    """Return 1 where a margin in nats prefers the chosen response, 0 for the rejected response, ½ for a tie.

    Margins below 1e-4 nats are ties, because two passes over the same weights differ by as much.

    >>> preference_agreement(torch.tensor([0.5, -0.5, 1e-6]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    return 0.5 + 0.5 * torch.sign(torch.where(margin.abs() < 1e-4, margin.new_zeros(()), margin))


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor, centering: float) -> Tensor:
    """Compute -logσ(s_c - s_j - margin) + λ(s_c + s_j)² per pair (Ouyang et al. 2022, eq. 1; Eisenstein et al. 2023, eq. 2).

    >>> bradley_terry_loss(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0), 0.0)
    tensor(0.6931)
    """
    return -logsigmoid(chosen - rejected - margin) + centering * (chosen + rejected).square()

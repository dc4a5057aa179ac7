"""Compute losses of judged responses elementwise; the stage divides their sum.

A loss of a pair is a function of a margin, whose sign changes when the two responses are swapped. `soft` gives each of these
losses soft labels and label smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlhf_lightning.functional.masked import row_sum

PreferenceLoss = Literal["sigmoid", "ipo", "ipo_length_normalized", "hinge", "apo_zero"]
MarginLoss = Callable[[Tensor], Tensor]
"""A margin of the better over the worse response → the loss, elementwise."""


def soft(loss: MarginLoss, margin: Tensor, p: Tensor | float) -> Tensor:
    """Compute p·ℓ(m) + (1 - p)·ℓ(-m), the expected loss of a pair of which the first response is better with probability p.

    With p = 1 it is ℓ(m), with 0 that of the swapped pair; with ½ a convex ℓ pulls the margin to 0.

    Args:
        loss: ℓ.
        margin: m, of the first response over the second.
        p: the probability, from 0 to 1, of the shape of `margin` or a number.

    >>> soft(lambda m: -logsigmoid(m), torch.tensor([2.0, 2.0, 2.0]), torch.tensor([1.0, 0.5, 0.0]))
    tensor([0.1269, 1.1269, 2.1269])
    """
    return p * loss(margin) + (1 - p) * loss(-margin)


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    kind: PreferenceLoss,
    label_smoothing: float,
    p: Tensor | float = 1.0,
    robust: bool = False,
) -> Tensor:
    """Compute one loss per pair from D = Σ_t log π - log ref of its two responses; all tensors are [pairs].

    sigmoid: -logσ(βΔ), Δ = D_c - D_j (Rafailov et al. 2023, eq. 7)
    ipo: (Δ - 1/(2β))² (Azar et al. 2023, eq. 17)
    ipo_length_normalized: the same with each D divided by its length, as TRL computes it
    hinge: max(0, 1 - βΔ) (Liu et al. 2023, RSO, the hinge of SLiC-HF)
    apo_zero: 1 - σ(βD_c) + σ(βD_j) (D'Oosterlinck et al. 2024, APO, eq. 7)

    Args:
        chosen: D of the better response.
        rejected: D of the worse response.
        chosen_length: tokens of the better response.
        rejected_length: tokens of the worse response.
        beta: β.
        kind: one of the losses above.
        label_smoothing: ε, the assumed fraction of wrong labels (conservative DPO, Mitchell 2023).
        p: probability that `chosen` is better; with ε it counts as p(1 - ε) + (1 - p)ε.
        robust: compute ((1 - ε)ℓ(m) - εℓ(-m)) / (1 - 2ε) instead (Chowdhury et al. 2024). Its expectation under a fraction ε of
            flipped labels is the loss of the true labels.
    """
    score, loss = _KINDS[kind]
    margin = score(chosen, chosen_length, beta) - score(rejected, rejected_length, beta)
    certainty = 1 - label_smoothing
    if robust:
        certainty /= 1 - 2 * label_smoothing
    return soft(partial(soft, partial(loss, beta=beta), p=certainty), margin, p)


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, p: Tensor | float = 1.0) -> Tensor:
    """Compute -logσ(β(c - j) - γ) per pair, of mean log-probabilities c and j of its responses (Meng et al. 2024, eq. 6).

    With probability 1 - p the rejected response is the better one, and must be so by the same γ.
    """
    return soft(lambda margin: -logsigmoid(beta * margin - gamma), chosen - rejected, p)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor, p: Tensor | float = 1.0) -> Tensor:
    """Compute -logσ(log odds_c - log odds_j) per pair, of mean log-probabilities (Hong et al. 2024, ORPO, eq. 7)."""
    return soft(lambda margin: -logsigmoid(margin), log_odds(chosen) - log_odds(rejected), p)


def kto_loss(
    drift: Tensor, good: Tensor, z: float, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Compute λ_D (1 - σ(β(D - z))) where `good`, else λ_U (1 - σ(β(z - D))) (Ethayarajh et al. 2024).

    Args:
        drift: D = Σ_t log π - log ref of each response, float32 [B].
        good: bool [B].
        z: the reference point, in nats.
        beta: β.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.
    """
    gain = beta * (drift - z)
    return torch.where(good, desirable_weight * (1 - gain.sigmoid()), undesirable_weight * (1 - (-gain).sigmoid()))


def log_odds(logprobs: Tensor) -> Tensor:
    """Compute log(P / (1 - P)) of log P; a P of 1 counts as one just below.

    >>> log_odds(torch.tensor([0.5, 0.75]).log())
    tensor([0.0000, 1.0986])
    """
    below = logprobs.clamp(max=-1e-6)  # at 0 the gradient would be NaN, also of rows that are masked later
    return below - torch.log(-torch.expm1(below))


def length_desensitized(values: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """Sum each row, tokens behind the length of the shorter response of the pair times α (Liu et al. 2024, LD-DPO).

    Args:
        values: float32 [B, T]; the two responses of a pair are adjacent rows.
        mask: bool [B, T].
        alpha: α; 1 is the plain sum.

    Returns:
        float32 [B].
    """
    lengths = mask.sum(-1).view(-1, 2)
    shorter = lengths.amin(-1, keepdim=True).expand_as(lengths).reshape(-1, 1)
    return row_sum(values * torch.where(mask.cumsum(-1) > shorter, alpha, 1.0), mask)


def _total(drift: Tensor, length: Tensor, beta: float) -> Tensor:
    return drift


def _per_token(drift: Tensor, length: Tensor, beta: float) -> Tensor:
    return drift / length.clamp(min=1)


def _anchored(drift: Tensor, length: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(beta * drift)


def _sigmoid(margin: Tensor, beta: float) -> Tensor:
    return -logsigmoid(beta * margin)


def _ipo(margin: Tensor, beta: float) -> Tensor:
    return (margin - 1 / (2 * beta)).square()


def _hinge(margin: Tensor, beta: float) -> Tensor:
    return relu(1 - beta * margin)


def _one_minus(margin: Tensor, beta: float) -> Tensor:
    return 1 - margin


_KINDS: dict[PreferenceLoss, tuple[Callable[[Tensor, Tensor, float], Tensor], Callable[..., Tensor]]] = {
    "sigmoid": (_total, _sigmoid),
    "ipo": (_total, _ipo),
    "ipo_length_normalized": (_per_token, _ipo),
    "hinge": (_total, _hinge),
    "apo_zero": (_anchored, _one_minus),
}
"""A score of each response, whose difference is the margin, and the loss of the margin."""


def preference_agreement(margin: Tensor) -> Tensor:
    """Return 1 where a margin in nats prefers the chosen response, 0 for the rejected response, ½ for a tie.

    Margins below 1e-4 nats are ties, because two passes over the same weights differ by as much.

    >>> preference_agreement(torch.tensor([0.5, -0.5, 1e-6]))
    tensor([1.0000, 0.0000, 0.5000])
    """
    return 0.5 + 0.5 * torch.sign(torch.where(margin.abs() < 1e-4, margin.new_zeros(()), margin))


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor, centering: float, p: Tensor | float = 1.0
) -> Tensor:
    """Compute -logσ(s_c - s_j - margin) + λ(s_c + s_j)² per pair (Ouyang et al. 2022, eq. 1; Eisenstein et al. 2023, eq. 2).

    With probability 1 - p the rejected response is the better one, and must be so by the same margin.

    >>> bradley_terry_loss(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0), 0.0)
    tensor(0.6931)
    """
    loss = soft(lambda difference: -logsigmoid(difference - margin), chosen - rejected, p)
    return loss + centering * (chosen + rejected).square()

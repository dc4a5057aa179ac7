"""Compute losses of pairs of responses elementwise; the stage divides their sum.

A loss of a pair is a function of a margin, whose sign changes when the two responses are swapped. `soft` gives each of these
losses soft labels and label smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

PreferenceLoss = Literal["sigmoid", "ipo", "ipo_length_normalized"]
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
) -> Tensor:
    """Compute one loss per pair from D = Σ_t log π - log ref of its two responses; all tensors are [pairs].

    sigmoid: -logσ(βΔ), Δ = D_c - D_j (Rafailov et al. 2023, eq. 7)
    ipo: (Δ - 1/(2β))² (Azar et al. 2023, eq. 17)
    ipo_length_normalized: the same with each D divided by its length, as TRL computes it

    Args:
        chosen: D of the better response.
        rejected: D of the worse response.
        chosen_length: tokens of the better response.
        rejected_length: tokens of the worse response.
        beta: β.
        kind: one of the losses above.
        label_smoothing: ε, the assumed fraction of wrong labels (conservative DPO, Mitchell 2023).
        p: probability that `chosen` is better; with ε it counts as p(1 - ε) + (1 - p)ε.
    """
    score, loss = _KINDS[kind]
    margin = score(chosen, chosen_length) - score(rejected, rejected_length)
    smoothed = partial(soft, partial(loss, beta=beta), p=1 - label_smoothing)
    return soft(smoothed, margin, p)


def _total(drift: Tensor, length: Tensor) -> Tensor:
    return drift


def _per_token(drift: Tensor, length: Tensor) -> Tensor:
    return drift / length.clamp(min=1)


def _sigmoid(margin: Tensor, beta: float) -> Tensor:
    return -logsigmoid(beta * margin)


def _ipo(margin: Tensor, beta: float) -> Tensor:
    return (margin - 1 / (2 * beta)).square()


_KINDS: dict[PreferenceLoss, tuple[Callable[[Tensor, Tensor], Tensor], Callable[..., Tensor]]] = {
    "sigmoid": (_total, _sigmoid),
    "ipo": (_total, _ipo),
    "ipo_length_normalized": (_per_token, _ipo),
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

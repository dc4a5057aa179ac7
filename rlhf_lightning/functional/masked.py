"""Compute sums, means and whitening over a mask, on all ranks of a process group."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_sum


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum `x` where `mask` is True, on this rank, as float64 [], so that the order of rows does not change the result.

    >>> masked_sum(torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(3., dtype=torch.float64)
    """
    return torch.where(mask, x, x.new_zeros(())).double().sum()


def masked_mean(x: Tensor, mask: Tensor, empty: float = 0.0) -> Tensor:
    """Average `x` over the True entries of all ranks; `empty` where there are none. float32 []."""
    sums = all_sum(torch.stack([masked_sum(x, mask), mask.sum().double()]))
    return torch.where(sums[1] > 0, sums[0] / sums[1].clamp(min=1), empty).to(x.dtype)


def masked_moments(x: Tensor, mask: Tensor, empty: float = 0.0) -> tuple[Tensor, Tensor]:
    """Compute mean and unbiased variance over the True entries of all ranks.

    The variance of one entry is 0; both are `empty` where there is no entry.
    """
    count = all_sum(mask.sum().double())
    mean = all_sum(masked_sum(x, mask)) / count.clamp(min=1)
    square = all_sum(masked_sum((x.double() - mean) ** 2, mask))
    moments = (mean, square / (count - 1).clamp(min=1))
    mean, variance = (torch.where(count > 0, moment, empty).to(x.dtype) for moment in moments)
    return mean, variance


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale to mean 0 and unbiased variance 1 over the True entries of all ranks; 0 elsewhere (Huang et al. 2024, detail 9).

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    mean, variance = masked_moments(x, mask)
    return torch.where(mask, (x - mean) * torch.rsqrt(variance + eps), x.new_zeros(()))


def row_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum each row of `x` [B, T] over its mask; [B]."""
    return torch.where(mask, x, x.new_zeros(())).sum(-1)


def row_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average each row of `x` [B, T] over its mask; [B], 0 for an empty row."""
    return row_sum(x, mask) / mask.sum(-1).clamp(min=1)

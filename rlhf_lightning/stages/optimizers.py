"""The optimizer that a stage has by default, and what is said of one that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.errors import UserError

QUANTISED_FROM = 4096
"""Elements from which bitsandbytes keeps the moments of a weight in 8 bits."""


def adamw(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a stage that is given none."""
    return torch.optim.AdamW(params, lr=1e-5)


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    make: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    trained: list[nn.Parameter],
) -> None:
    """Have an optimizer of bitsandbytes take a step on a weight of no consequence: some lack a kernel for a device.

    Raises:
        UserError: it cannot, or the weights are cut over processes.
    """
    name = type(optimizer).__name__
    if not type(optimizer).__module__.startswith("bitsandbytes") or not trained:
        return
    if any(isinstance(weight, DTensor) for weight in trained):
        raise UserError(
            f"the optimizer {name} of bitsandbytes cannot step on weights that are cut over processes (fsdp2); use "
            "torch.optim.AdamW, or strategy ddp"
        )
    weight = nn.Parameter(torch.zeros(2, QUANTISED_FROM, dtype=trained[0].dtype, device=trained[0].device))
    weight.grad = torch.zeros_like(weight)
    try:
        make([weight]).step()
    except Exception as error:  # whatever its kernels raise
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"the optimizer {name} of bitsandbytes cannot step on {weight.device.type} in {str(weight.dtype)[6:]} ({said}); "
            "use another, such as bitsandbytes.optim.AdamW8bit or torch.optim.AdamW"
        ) from error

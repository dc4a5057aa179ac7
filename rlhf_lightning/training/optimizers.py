"""The optimizer that a stage has by default, and what is said of one that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.errors import UserError

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
QUANTISED_FROM = 4096
"""Elements from which bitsandbytes keeps the moments of a weight in 8 bits."""


def adamw(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a stage that is given none."""
    return torch.optim.AdamW(params, lr=1e-5)


def build_optimizer(make: MakeOptimizer, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the weights that train, which is known to work.

    Raises:
        UserError: its arguments are wrong, or it cannot step on these weights.
    """
    try:
        optimizer = make(trained)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"the optimizer cannot be made: {_shortened(error)}") from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(
            "the optimizer LBFGS asks for the loss several times a step, which has gradients of its own each time"
        )
    if any(isinstance(weight, DTensor) for weight in trained):
        _check_sharded(optimizer)
    if type(optimizer).__module__.startswith("bitsandbytes") and trained:
        _check_kernel(type(optimizer).__name__, make, trained)
    _use_fused_kernel(optimizer)
    return optimizer


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """How Lightning steps a scheduler: after every optimiser step, or at the end of an epoch by the metric that it waits for.

    Raises:
        UserError: it waits for one and does not say for which.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    if not hasattr(scheduler, "monitor"):
        raise UserError(
            "ReduceLROnPlateau waits for a metric and does not say for which; use lightning.pytorch.cli.ReduceLROnPlateau with "
            "monitor: val/reward/mean, for instance"
        )
    return {"scheduler": scheduler, "monitor": scheduler.monitor, "interval": "epoch"}


def _use_fused_kernel(optimizer: torch.optim.Optimizer) -> None:
    """Have Adam step in one kernel that makes no temporaries, unless `fused` or `foreach` says how it shall.

    Set on the groups and not by the constructor, which would also take gradient scaling, and so clipping, from Lightning.
    """
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        for group in optimizer.param_groups:
            chosen = group["fused"] is not None or group["foreach"] is not None
            if not (chosen or group["capturable"] or group["differentiable"]):
                group["fused"] = True


def _check_sharded(optimizer: torch.optim.Optimizer) -> None:
    """Refuse what cannot step on weights that are cut over processes, or go on with them from a checkpoint."""
    name, cut = type(optimizer).__name__, "weights that are cut over processes (fsdp2)"
    if type(optimizer).__module__.startswith("bitsandbytes"):
        raise UserError(
            f"the optimizer {name} of bitsandbytes cannot step on {cut}; use torch.optim.AdamW, or strategy ddp"
        )
    if type(optimizer) is torch.optim.SGD and not any(group["momentum"] for group in optimizer.param_groups):
        # neither Lightning nor torch reads an empty state of such a run
        raise UserError(
            f"SGD without momentum keeps nothing, and a run with {cut} could not go on from a checkpoint with it; set "
            "optimizer.momentum, or use strategy ddp"
        )


def _check_kernel(name: str, make: MakeOptimizer, trained: list[nn.Parameter]) -> None:
    """A step on a weight of no consequence: bitsandbytes lacks some kernels for some devices, and says so in the first step."""
    weight = nn.Parameter(torch.zeros(2, QUANTISED_FROM, dtype=trained[0].dtype, device=trained[0].device))
    weight.grad = torch.zeros_like(weight)
    try:
        make([weight]).step()
    except Exception as error:  # whatever its kernels raise
        raise UserError(
            f"the optimizer {name} of bitsandbytes cannot step on {weight.device.type} in {str(weight.dtype)[6:]} "
            f"({_shortened(error)}); use another, such as bitsandbytes.optim.AdamW8bit or torch.optim.AdamW"
        ) from error


def _shortened(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

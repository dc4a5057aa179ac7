"""Optimizers of a stage: the default, and checks that the configured one can step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.errors import UserError

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
LEAST_EPSILON = 2.4e-4
"""Square root of the smallest float16."""
QUANTISED_FROM = 4096
"""Smallest number of elements of a weight whose moments bitsandbytes keeps in 8 bits."""


def adamw(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Build the default optimizer of a stage."""
    return torch.optim.AdamW(params, lr=1e-5)


def build_optimizer(make: MakeOptimizer, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer of the weights that train, and check that it can step on them.

    Raises:
        UserError: its arguments are wrong, or it cannot step on these weights.
    """
    optimizer = _made(make, trained)
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(
            "the optimizer LBFGS asks for the loss several times a step, which has gradients of its own each time"
        )
    if any(isinstance(weight, DTensor) for weight in trained):
        _check_sharded(optimizer)
    if type(optimizer).__module__.startswith("bitsandbytes") and trained:
        _check_kernel(type(optimizer).__name__, make, trained)
    _check_epsilon(optimizer)
    _use_fused_kernel(optimizer)
    return optimizer


def check_optimizer(make: MakeOptimizer, precision: str = "32-true") -> None:
    """Check the arguments of the optimizer on a weight made for this check, before the model is loaded.

    Args:
        make: builds the optimizer.
        precision: of the trainer.

    Raises:
        UserError: they are wrong.
    """
    dtype = torch.float16 if precision == "16-true" else torch.float32
    _check_epsilon(_made(make, [nn.Parameter(torch.zeros(1, dtype=dtype))]))


def _check_epsilon(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose divisor may be 0: in float16 the square of a gradient below 2.4e-4 is 0, and so is 1e-8.

    Raises:
        UserError: its epsilon is smaller, and it keeps its moments in the dtype of float16 weights.
    """
    if type(optimizer).__module__.startswith("bitsandbytes"):  # which keeps them in 8 or 32 bits
        return
    for group in optimizer.param_groups:
        half = any(weight.dtype == torch.float16 for weight in group["params"])
        if half and group.get("eps") is not None and group["eps"] < LEAST_EPSILON:
            raise UserError(
                f"optimizer.eps is {group['eps']}, and the weights that train are float16, in which the divisor of "
                f"{type(optimizer).__name__} would be 0; set trainer.precision to bf16-true or 16-mixed, or optimizer.eps to "
                "1e-3 or more"
            )


def _made(make: MakeOptimizer, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    try:
        optimizer = make(weights)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"the optimizer cannot be made: {_shortened(error)}") from error
    for group in optimizer.param_groups:
        if not math.isfinite(group.get("lr", 0.0)):
            raise UserError(f"optimizer.lr is {group['lr']}; set it to a finite number")
    return optimizer


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return how Lightning steps a scheduler: after every optimiser step, or by its metric at the end of an epoch.

    Raises:
        UserError: the scheduler needs a metric and names none.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step"}
    if not hasattr(scheduler, "monitor"):
        raise UserError(
            "ReduceLROnPlateau waits for a metric and does not say for which; use lightning.pytorch.cli.ReduceLROnPlateau with "
            "monitor: val/reward/mean, for instance"
        )
    return {"scheduler": scheduler, "monitor": scheduler.monitor, "interval": "epoch"}


def change_option(
    optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any], name: str, before: Any, now: Any
) -> None:
    """Change an option of optimizers that resume; a schedule continues with the new learning rate.

    Args:
        optimizers: as the checkpoint left them.
        schedulers: of the optimizers.
        name: of the option, such as lr.
        before: its value until now.
        now: the new value.

    Raises:
        UserError: the optimizer reads the option only when it is made, or a schedule cannot leave a rate of 0.
    """
    scheduled = list(schedulers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if name not in group:
                raise UserError(f"{type(optimizer).__name__} cannot change {name} within a run; set it to {before}")
            if name != "lr" or not scheduled:
                group[name] = tuple(now) if isinstance(group[name], tuple) else now
                continue
            if not before:
                raise UserError(f"optimizer.lr is {now} and was {before}, which no schedule can leave; start a new run")
            group["lr"] *= now / before
            group["initial_lr"] = now
    for scheduler in scheduled if name == "lr" else []:
        _scale(scheduler, now / before)


def _scale(scheduler: Any, factor: float) -> None:
    """Multiply the learning rates that a schedule, and those inside it, start from."""
    for attribute in ("base_lrs", "_last_lr"):
        if hasattr(scheduler, attribute):
            setattr(scheduler, attribute, [rate * factor for rate in getattr(scheduler, attribute)])
    for inner in [*getattr(scheduler, "_schedulers", ()), *filter(None, [getattr(scheduler, "inner", None)])]:
        _scale(inner, factor)


def _use_fused_kernel(optimizer: torch.optim.Optimizer) -> None:
    """Make Adam step in one kernel without temporaries, unless the config sets `fused` or `foreach`.

    The groups are changed and not the constructor's argument, with which Lightning would no longer scale and clip gradients.
    """
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        for group in optimizer.param_groups:
            chosen = group["fused"] is not None or group["foreach"] is not None
            if not (chosen or group["capturable"] or group["differentiable"]):
                group["fused"] = True


def _check_sharded(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimizers that cannot step on sharded weights, or cannot resume with them from a checkpoint."""
    name, sharded = type(optimizer).__name__, "weights that are sharded over processes (fsdp2)"
    if type(optimizer).__module__.startswith("bitsandbytes"):
        raise UserError(
            f"the optimizer {name} of bitsandbytes cannot step on {sharded}; use torch.optim.AdamW, or strategy ddp"
        )
    if type(optimizer) is torch.optim.SGD and not any(group["momentum"] for group in optimizer.param_groups):
        # neither Lightning nor torch reads an empty state of such a run
        raise UserError(
            f"SGD without momentum keeps nothing, and a run with {sharded} cannot resume from a checkpoint with it; set "
            "optimizer.momentum, or use strategy ddp"
        )


def _check_kernel(name: str, make: MakeOptimizer, trained: list[nn.Parameter]) -> None:
    """Take a step on a weight made for this check: bitsandbytes lacks some kernels for some devices."""
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

"""Size of optimiser steps: warn of a step that moves the weights beyond reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.console import print_once

LARGEST_UPDATE = 0.5
"""Norm of an update divided by the norm of the weights. Fine-tuning stays below 0.01; at 1 nothing is left of a model."""
SAMPLED = 4096
"""Elements of each weight that are compared, at least, where it has as many."""


class UpdateSize:
    """Warns once of an optimiser step whose update has more than half of the norm of the weights, or is not finite.

    It compares evenly spaced elements of every weight that trains before and after a step, at the steps that the trainer logs.
    It needs no copy of the weights and no pass over all of them.

    Args:
        module: the stage.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module, self.warned = module, False

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the optimiser step in the block."""
        every, step = self.module.trainer.log_every_n_steps, self.module.global_step + 1  # type: ignore[attr-defined]
        if self.warned or not every or step % every:
            yield
            return
        groups = (group for optimizer in self.module.trainer.optimizers for group in optimizer.param_groups)
        weights = (weight for group in groups for weight in group["params"])  # shards, also while the module is whole
        trained = [weight for weight in weights if weight.requires_grad]
        before = sampled(trained)
        yield
        ratio = relative_change(before, sampled(trained))
        if math.isnan(ratio) or ratio > LARGEST_UPDATE:
            self.warned = True
            print_once(self._warning(step, ratio))

    def _warning(self, step: int, ratio: float) -> str:
        optimizers = self.module.optimizers()
        groups = getattr(optimizers, "param_groups", [])
        rate = f", now {groups[0]['lr']:g}" if groups and "lr" in groups[0] else ""
        moved = f"by {ratio:.2g} times their norm" if math.isfinite(ratio) else "to numbers that are not finite"
        return (
            f"warning: step {step} moved the weights {moved}, and fine-tuning moves them by less than a hundredth: lower "
            f"optimizer.lr{rate}, or warm it up with lr_scheduler, and resume from a checkpoint before this step, or start over"
        )

    def reset(self) -> None:
        """Warn again."""
        self.warned = False


def sampled(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return a copy of evenly spaced elements of each weight, float32; of a sharded one those of this rank."""
    found = []
    for weight in weights:
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        flat = local.detach().reshape(-1)
        found.append(flat[:: max(1, flat.numel() // SAMPLED)].to(torch.float32, copy=True))
    return found


def relative_change(before: list[Tensor], after: list[Tensor]) -> float:
    """Return the norm of all changes divided by the norm of all numbers before; 0 where all of them were 0.

    >>> relative_change([torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([3.0, 0.0]), torch.tensor([6.5])])
    0.5
    """
    if not before:
        return 0.0
    norm = torch.nn.utils.get_total_norm(before)
    change = torch.nn.utils.get_total_norm([new - old for new, old in zip(after, before, strict=True)])
    return float(change / norm) if float(norm) else 0.0

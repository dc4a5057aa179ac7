"""Whether an optimiser step may be taken: no NaN and no infinity in its losses and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.types import LossOutput


@dataclass(frozen=True)
class MicroBatch:
    """A part of an optimiser step: what went in and what the loss said of it."""

    batch: Any
    loss: LossOutput


@dataclass(frozen=True)
class NonFinite:
    """The first number of a step that is not finite."""

    metric: str
    value: float
    part: int
    """Which part of the step, from 0."""


def find_nonfinite(parts: list[MicroBatch], gradient_norm: Tensor | None) -> NonFinite | None:
    """The first metric of the first part that is not finite, else the loss, else the norm of the gradient (None: not judged)."""
    numbers = [part.loss.loss.detach().double() for part in parts]
    numbers += [] if gradient_norm is None else [gradient_norm.detach().double().to(numbers[0].device)]
    if bool(torch.stack(numbers).isfinite().all()):  # one question to the device, not one a number
        return None
    for index, part in enumerate(parts):
        means = {name: float(total) for name, (total, _) in part.loss.means.items()}
        for name, value in {**means, "loss": float(part.loss.loss.detach())}.items():
            if not math.isfinite(value):
                return NonFinite(name, value, index)
    return NonFinite("optimizer/grad_norm", float(numbers[-1]), len(parts) - 1)


def save_step(path: Path, step: int, fault: NonFinite, parts: list[MicroBatch], gradient_norm: Tensor | None) -> None:
    """What is needed to look into a fault, as plain tensors: `torch.load(path, weights_only=True)` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "step": step,
            "metric": fault.metric,
            "value": fault.value,
            "part": fault.part,
            "batches": [_tensors(part.batch) for part in parts],
            "losses": [part.loss.loss.detach().cpu() for part in parts],
            "metrics": [{name: [float(x) for x in pair] for name, pair in part.loss.means.items()} for part in parts],
            "gradient_norm": None if gradient_norm is None else float(gradient_norm),
        },
        path,
    )


def _tensors(batch: Any) -> dict[str, Tensor]:
    named = {item.name: getattr(batch, item.name) for item in fields(batch)} if is_dataclass(batch) else {}
    return {name: value.detach().cpu() for name, value in named.items() if isinstance(value, Tensor)}

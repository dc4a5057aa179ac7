"""Non-finite numbers: stop the run before an optimiser step whose losses or gradients hold a NaN or an infinity, or skip it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rlhf_lightning.console import print_once
from rlhf_lightning.distributed import any_rank
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.types import LossOutput

OnNonFinite = Literal["stop", "skip"]


class NonFiniteGuard:
    """Decides, on all ranks alike, whether an optimiser step is taken.

    Args:
        module: the stage.
        on_nonfinite: stop the run, or skip the step and count it.
        metric_log: gets the count as `optimizer/skipped_steps`.
    """

    def __init__(self, module: LightningModule, on_nonfinite: OnNonFinite, metric_log: MetricLog) -> None:
        self.module, self.on_nonfinite, self.metric_log = module, on_nonfinite, metric_log
        self.skipped_steps = 0

    def allows(self, micro_batches: list[MicroBatch], gradient_norm: Tensor) -> bool:
        """Check the losses and the gradient of a step; every rank must call it.

        Returns:
            Whether the step is taken. False removes all gradients, so that the optimizer changes neither weights nor moments.

        Raises:
            UserError: a number is not finite, and `on_nonfinite` is stop.
        """
        # a gradient scaler skips infinite gradients itself
        scaled = getattr(self.module.trainer.precision_plugin, "scaler", None) is not None
        fault = find_nonfinite(micro_batches, None if scaled else gradient_norm)
        if not any_rank(fault is not None, self.module.device):
            return True
        self._refuse(fault, micro_batches, gradient_norm)
        return False

    def _refuse(self, fault: NonFinite | None, micro_batches: list[MicroBatch], gradient_norm: Tensor) -> None:
        text = self._saved(fault, micro_batches, gradient_norm)
        if self.on_nonfinite == "stop":
            raise UserError(f"{text}; lower the learning rate, or skip such steps with model.on_nonfinite: skip")
        self.skipped_steps += 1
        print_once(f"{text}; skipped, {self.skipped_steps} so far")
        for parameter in self.module.parameters():
            parameter.grad = None
        count = torch.tensor(float(self.skipped_steps), device=self.module.device)
        self.metric_log.record(LossOutput(count, maxima={"optimizer/skipped_steps": count}))

    def _saved(self, fault: NonFinite | None, micro_batches: list[MicroBatch], gradient_norm: Tensor) -> str:
        """Save the step in `nan_batch.pt` and return a description of the fault."""
        step, rank = self.module.global_step + 1, self.module.global_rank
        if fault is None:
            return f"step {step}: a number is not finite on another process; the message of that process names it"
        path = Path(self.module.trainer.default_root_dir) / f"nan_batch{f'.{rank}' if rank else ''}.pt"
        save_step(path, step, fault, micro_batches, gradient_norm)
        return (
            f"step {step}: {fault.metric} is {fault.value} in micro-batch {fault.micro_batch + 1} of {len(micro_batches)}; the "
            f"step was not taken, its batch is in {path}"
        )

    def reset(self) -> None:
        """Start counting over."""
        self.skipped_steps = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number of skipped steps."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the number of skipped steps."""
        self.skipped_steps = state["skipped_steps"]


@dataclass(frozen=True)
class NonFinite:
    """The first number of a step that is not finite."""

    metric: str
    value: float
    micro_batch: int
    """Index of the micro-batch within the step, from 0."""


def find_nonfinite(micro_batches: list[MicroBatch], gradient_norm: Tensor | None) -> NonFinite | None:
    """Find the first metric of the first micro-batch that is not finite, else its loss, else the norm of the gradient.

    Args:
        micro_batches: those of the step, at least one.
        gradient_norm: None checks the losses alone.
    """
    numbers = [each.loss.loss.detach().double() for each in micro_batches]
    numbers += [] if gradient_norm is None else [gradient_norm.detach().double().to(numbers[0].device)]
    if bool(torch.stack(numbers).isfinite().all()):  # one transfer from the device, not one per number
        return None
    for index, each in enumerate(micro_batches):
        means = {name: float(total) for name, (total, _) in each.loss.means.items()}
        for name, value in {**means, "loss": float(each.loss.loss.detach())}.items():
            if not math.isfinite(value):
                return NonFinite(name, value, index)
    return NonFinite("optimizer/grad_norm", float(numbers[-1]), len(micro_batches) - 1)


def save_step(
    path: Path, step: int, fault: NonFinite, micro_batches: list[MicroBatch], gradient_norm: Tensor | None
) -> None:
    """Save batches, losses and metrics of a step as plain tensors: `torch.load(path, weights_only=True)` reads the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = [{name: [float(x) for x in pair] for name, pair in each.loss.means.items()} for each in micro_batches]
    torch.save(
        {
            "step": step,
            "metric": fault.metric,
            "value": fault.value,
            "micro_batch": fault.micro_batch,
            "batches": [_tensors(each.batch) for each in micro_batches],
            "losses": [each.loss.loss.detach().cpu() for each in micro_batches],
            "metrics": metrics,
            "gradient_norm": None if gradient_norm is None else float(gradient_norm),
        },
        path,
    )


def _tensors(batch: Any) -> dict[str, Tensor]:
    named = {item.name: getattr(batch, item.name) for item in fields(batch)} if is_dataclass(batch) else {}
    return {name: value.detach().cpu() for name, value in named.items() if isinstance(value, Tensor)}

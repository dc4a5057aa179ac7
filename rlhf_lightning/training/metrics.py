"""Metrics of training: accumulated over micro-batches and ranks, logged once per optimiser step or rollout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rlhf_lightning.distributed import all_max, all_sum, rank
from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.memory import peak_memory
from rlhf_lightning.types import LossOutput

GRADIENT_NORM = "optimizer/grad_norm"


class MetricAccumulator:
    """Adds up sums, counts and maxima until they are read, over all ranks at once."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, loss: LossOutput) -> None:
        """Add the metrics of one micro-batch."""
        for name, (total, count) in loss.means.items():
            pair = torch.stack([total.double(), count.double()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair
        for name, value in loss.maxima.items():
            self.maxima[name] = torch.maximum(self.maxima[name], value) if name in self.maxima else value

    def read(self) -> dict[str, float]:
        """Return means and maxima since the last call, over all ranks; every rank must call it.

        A mean over nothing is NaN.
        """
        values: dict[str, float] = {}
        if self.sums:
            pairs = all_sum(torch.stack(list(self.sums.values())))
            means = torch.where(pairs[:, 1] > 0, pairs[:, 0] / pairs[:, 1].clamp(min=1), math.nan)
            values |= dict(zip(self.sums, means.tolist(), strict=True))
        if self.maxima:
            values |= dict(zip(self.maxima, all_max(torch.stack(list(self.maxima.values()))).tolist(), strict=True))
        self.sums, self.maxima = {}, {}
        return values

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return sums and maxima since the last `read`, on the CPU."""
        return {"sums": _on("cpu", self.sums), "maxima": _on("cpu", self.maxima)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]], device: torch.device | str) -> None:
        """Restore sums and maxima onto `device`."""
        self.sums, self.maxima = _on(device, state["sums"]), _on(device, state["maxima"])


def for_other_ranks(states: list[dict[str, dict[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    """Return the state of an accumulator of this rank from those of another number of ranks: rank 0 takes all sums."""
    names = dict.fromkeys(name for state in states for name in state["sums"])
    known = {name: [state["sums"][name] for state in states if name in state["sums"]] for name in names}
    maxima = dict.fromkeys(name for state in states for name in state["maxima"])
    return {
        "sums": {name: torch.stack(found).sum(0) * (rank() == 0) for name, found in known.items()},
        "maxima": {
            name: torch.stack([state["maxima"][name] for state in states if name in state["maxima"]]).amax(0)
            for name in maxima
        },
    }


def _on(device: torch.device | str, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: number.to(device) for name, number in numbers.items()}


class MetricLog:
    """Accumulates the metrics of optimiser steps and logs them.

    Lightning's `log` repeats a value in every row until it changes. `MetricLog` calls the loggers itself instead.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module, self.accumulator = module, MetricAccumulator()

    def record(self, loss: LossOutput) -> None:
        """Add metrics to those of the next row."""
        self.accumulator.add(loss)

    def record_step(self, micro_batches: list[MicroBatch], gradient_norm: Tensor) -> None:
        """Add the metrics of an optimiser step, and the norm of its gradient, which is the same on all ranks."""
        for each in micro_batches:
            self.record(each.loss)
        one, ranks = torch.ones((), device=gradient_norm.device), self.module.trainer.world_size
        self.record(LossOutput(one, {GRADIENT_NORM: (gradient_norm / ranks, one / ranks)}))

    @property
    def has_step(self) -> bool:
        """At least one optimiser step is recorded and not yet logged."""
        return GRADIENT_NORM in self.accumulator.sums

    @property
    def is_empty(self) -> bool:
        """No mean is recorded."""
        return not self.accumulator.sums

    @property
    def is_due(self) -> bool:
        """The trainer logs the present step (`log_every_n_steps`)."""
        every = self.module.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and self.module.global_step % every == 0

    def read(self, context: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the metrics since the last row, over all ranks; every rank must call it.

        Args:
            context: metrics that the row begins with, of all ranks already.
        """
        return {**(context or {}), **self.accumulator.read(), "memory/peak": peak_memory()}

    def report(self, values: Mapping[str, float], shown: Iterable[str] = ()) -> None:
        """Log metrics that are of all ranks already, and give them to callbacks.

        Args:
            values: metric name to value.
            shown: names that the progress bar shows.
        """
        self.tell_loggers(values)
        for name, value in values.items():
            self.module.log(
                name, value, prog_bar=name in shown, logger=False, on_step=True, on_epoch=False, batch_size=1
            )

    def tell_loggers(self, values: Mapping[str, float]) -> None:
        """Log metrics without giving them to callbacks; works in hooks where Lightning refuses `log`."""
        for logger in self.module.loggers if values else []:
            logger.log_metrics(dict(values), step=self.module.global_step)

    def reset(self) -> None:
        """Forget what an earlier run recorded and did not log."""
        self.accumulator = MetricAccumulator()

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics that are not yet logged."""
        return self.accumulator.state_dict()

    @staticmethod
    def for_other_ranks(states: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of this rank from those of another number of ranks."""
        return for_other_ranks(states)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the metrics onto the device of the run."""
        self.accumulator.load_state_dict(state, self.module.trainer.strategy.root_device)

"""Skipping the rest of a rollout when the algorithm stops its updates, for example at a KL limit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.metrics import MetricAccumulator, for_other_ranks


class UpdateStopper:
    """Asks the algorithm after every optimiser step whether to skip the rest of the rollout."""

    def __init__(self, module: LightningModule, algorithm: Algorithm) -> None:
        self.module, self.algorithm = module, algorithm
        self.skipping = False
        self.accumulator = MetricAccumulator()
        """Metrics of the present optimiser step, for `Algorithm.stop`."""

    def record_step(self, micro_batches: list[MicroBatch]) -> None:
        """Add the metrics of the optimiser step that is about to be taken."""
        for each in micro_batches:
            self.accumulator.add(each.loss)

    @property
    def has_step(self) -> bool:
        """An optimiser step is recorded and the algorithm is not yet asked."""
        return bool(self.accumulator.sums)

    def decide(self) -> dict[str, float]:
        """Ask the algorithm; every rank must call it.

        Returns:
            The metrics of the optimiser step, over all ranks.
        """
        metrics = self.accumulator.read()
        self.skipping = self.algorithm.stop(metrics)
        return metrics

    def skip_step(self, closure: Callable[[], Any]) -> None:
        """Run the closure of Lightning without a step: no rank has gradients, so none must wait for those of another."""
        strategy = self.module.trainer.strategy
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            closure()

    def start_rollout(self, skip: bool = False) -> None:
        """Learn from the next rollout, or skip all of it."""
        self.skipping = skip

    def reset(self) -> None:
        """Forget an earlier run, which may have ended within a rollout."""
        self.skipping, self.accumulator = False, MetricAccumulator()

    def state_dict(self) -> dict[str, Any]:
        """Return whether the rest of the rollout is skipped, and the metrics of the present step."""
        return {"skipping": self.skipping, "step": self.accumulator.state_dict()}

    @staticmethod
    def for_other_ranks(states: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of this rank from those of another number of ranks, which agree on `skipping`."""
        return {**states[0], "step": for_other_ranks([state["step"] for state in states])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both onto the device of the run."""
        self.skipping = state["skipping"]
        self.accumulator.load_state_dict(state["step"], self.module.trainer.strategy.root_device)

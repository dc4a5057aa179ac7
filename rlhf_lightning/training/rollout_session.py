"""Rollouts of a run: the loader that Lightning iterates, the collection of each rollout, and its buffer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.console import print_once
from rlhf_lightning.distributed import of_all_ranks, raise_on_all_ranks, shared_errors
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import explained_variance
from rlhf_lightning.functional.masked import masked_mean
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.buffer import RolloutBuffer, batch_of
from rlhf_lightning.rollouts.collector import Collector
from rlhf_lightning.rollouts.refill import teaching_only
from rlhf_lightning.rollouts.rollout_loader import RolloutLoader
from rlhf_lightning.rollouts.row_source import RowSource, local_rows
from rlhf_lightning.rollouts.scored import Scored
from rlhf_lightning.seeding import Randomness, derive_seed
from rlhf_lightning.training.correction import Correction, log_ratio_of
from rlhf_lightning.training.events import call_callbacks
from rlhf_lightning.training.loaders import LoaderBinding, run_seed
from rlhf_lightning.training.metrics import GRADIENT_NORM
from rlhf_lightning.training.network import evaluation
from rlhf_lightning.training.update_stopper import UpdateStopper
from rlhf_lightning.types import Batch, RawRows, Rollout

OnUnscored = Literal["stop", "warn"]
NEXT_REFILL = 2**32
"""Distance between the numbers of the prompts of a rollout and of those that replace them, beyond the size of any batch."""


class RolloutOwner(Protocol):
    """The interface of a stage that the session uses; `stages.rollout.RolloutStage` documents it."""

    algorithm: Algorithm

    @property
    def network(self) -> Any:
        """The network that generates and learns."""

    @property
    def is_recorded(self) -> bool:
        """Rollouts are made of recorded responses."""

    @property
    def responses_per_row(self) -> int:
        """Rows of a rollout per row of the data."""

    def judge(self) -> Reward | None:
        """Return the reward of rollouts."""

    def build_collector(self) -> Collector:
        """Load the frozen models, and build the collector."""

    def read_rows(self, batch: Any) -> RawRows:
        """Turn a batch of the data loader into rows."""

    def recorded_rollout(self, rows: RawRows, count: bool, policy: bool) -> Rollout:
        """Make a rollout of recorded responses."""


class RolloutSession:
    """Collects rollouts and serves them as minibatches.

    Args:
        stage: the LightningModule that owns the session.
        loaders: holds the rollout loader of the run.
        stopper: skips the rest of a rollout.
        iterations: rollouts per Lightning epoch; None for one pass over the prompts.
        on_unscored: stop the run at a rollout in which no response has a score, or warn and skip the rollout.
        correction: of rollouts with `generator_logprobs`; None: the default one, where the algorithm has advantages.
    """

    def __init__(
        self,
        stage: RolloutOwner,
        loaders: LoaderBinding,
        stopper: UpdateStopper,
        iterations: int | None,
        on_unscored: OnUnscored = "stop",
        correction: Correction | None = None,
    ) -> None:
        self.stage, self.loaders, self.stopper = stage, loaders, stopper
        self.module: Any = stage
        self.algorithm, self.iterations = stage.algorithm, iterations
        self.on_unscored, self.correction = on_unscored, correction
        self.collector: Collector | None = None
        self._restored_metrics: dict[str, float] = {}
        self._reported_empty = False
        self._update_started = time.perf_counter()

    # -- before training -----------------------------------------------------------------------------------------------

    def check_minibatches(self) -> None:
        """Refuse optimiser steps that no rollout could fill, on any rank.

        Raises:
            UserError: the algorithm wants more minibatches than a rollout has loss groups.
        """
        trainer, algorithm = self.module.trainer, self.algorithm
        rows, size = (getattr(trainer.datamodule, name, None) for name in ("train_rows", "batch_size"))  # type: ignore[attr-defined]
        if rows is None or size is None:
            return
        prompts, responses = min(size * self._accumulate, len(rows)), self.stage.responses_per_row
        loss_groups = -(-prompts // trainer.world_size) * responses // algorithm.rows_per_loss_group
        if 0 < loss_groups < algorithm.minibatches:
            joined = f" × trainer.accumulate_grad_batches {self._accumulate}" if self._accumulate > 1 else ""
            raise UserError(
                f"{type(algorithm).__name__}.minibatches is {algorithm.minibatches}, and a rollout of {prompts} rows "
                f"(data.batch_size {size}{joined}, processes {trainer.world_size}) can fill {loss_groups} optimiser steps; set "
                f"it to {loss_groups} or less, or raise data.batch_size"
            )

    def prepare(self) -> None:
        """Load the frozen models, unless an earlier call did."""
        if self.collector is None:
            self.collector = self.stage.build_collector()

    # -- rollouts ------------------------------------------------------------------------------------------------------

    @property
    def _accumulate(self) -> int:
        return int(self.module.trainer.accumulate_grad_batches)

    def loader(self, prompts: Iterable[Any]) -> RolloutLoader:
        """Make a loader of rollouts from a loader of prompts or of recorded rows.

        A rollout has the rows of `accumulate_grad_batches` batches, and each of its optimiser steps as many micro-batches.

        Raises:
            UserError: an epoch would end within an optimiser step.
        """
        seed, accumulate = run_seed(), self._accumulate
        batches = self.algorithm.epochs * self.algorithm.minibatches * accumulate
        source = RowSource(prompts, seed, self.stage.read_rows, join=accumulate)
        iterations = len(source) if self.iterations is None else self.iterations
        epoch = self.loaders.epoch(iterations * batches)
        if epoch["limit"] % accumulate:
            raise UserError(
                f"an epoch of {epoch['limit']} batches ends within an optimiser step of {accumulate}: set "
                "trainer.limit_train_batches to a multiple of trainer.accumulate_grad_batches"
            )
        return RolloutLoader(source, self.collect, self.buffer, batches, iterations, seed, **epoch)

    def collect(self, rows: RawRows, count: bool, randomness: Randomness) -> RolloutBuffer:
        """Collect a rollout, let the algorithm prepare it, and fill a buffer.

        Args:
            rows: prompts or recorded rows of this rank.
            count: False for dummy rows of weight 0, with which a rank without rows matches the collectives of the others.
            randomness: random numbers of the rows; its seed and iteration give the order of minibatches.
        """
        call_callbacks(self.module, "on_rollout_start")
        collector, algorithm = self._collector, self.algorithm
        with evaluation(self.module, self.stage.network):
            if self.stage.is_recorded:
                rollout = self.stage.recorded_rollout(rows, count, not self.single_pass)
                numbers = torch.tensor(randomness.rows, device=rollout.groups.device)
                rollout = replace(rollout, groups=numbers[rollout.groups])
            else:
                responses, greedy = algorithm.responses_per_prompt, algorithm.greedy_baseline
                with shared_errors():
                    first = collector.request(rows, responses, randomness, count, greedy)
                rollout = self._measured(first, randomness)
            batch = self._corrected(algorithm.prepare(rollout))
            if batch.values is not None and batch.returns is not None:
                explained = explained_variance(batch.values, batch.returns, batch.mask)
                collector.metrics["value/explained_variance"] = float(explained)
        call_callbacks(self.module, "on_rollout_end", batch)
        if collector.nothing_scored:
            self._report_unscored()
        self._report_empty(len(rows), len(batch))
        self.stopper.start_rollout(skip=collector.nothing_scored)
        self._update_started = time.perf_counter()
        return self.buffer(batch, derive_seed(randomness.seed, randomness.iteration))

    def _corrected(self, batch: Batch) -> Batch:
        """Correct the advantages for an engine that is not the model that trains, and measure how far the two differ."""
        if batch.generator_logprobs is None:
            return batch
        gap = masked_mean(log_ratio_of(batch).abs(), batch.mask, math.nan)
        self._collector.metrics["generator/log_ratio"] = float(gap)
        if batch.advantages is None and self.correction is None:
            return batch
        corrected, metrics = (self.correction or Correction()).apply(batch)
        self._collector.metrics |= metrics
        return corrected

    def _report_unscored(self) -> None:
        """Warn of a rollout that is skipped, or log its metrics and stop.

        Raises:
            UserError: `on_unscored` is `stop`.
        """
        metrics = self._collector.metrics
        fault = (
            f"reward {type(self.stage.judge()).__name__} scored none of the {metrics['reward/unscored']:.0f} responses of a "
            "rollout: it returned None or NaN for each"
        )
        if self.on_unscored == "stop":
            for logger in self.module.loggers:  # the row of a rollout, whose step is not taken
                logger.log_metrics({**metrics, GRADIENT_NORM: math.nan}, step=self.module.global_step)
            raise of_all_ranks(
                UserError(f"{fault}; fix the reward, or set model.on_unscored to warn to skip such rollouts")
            )
        print_once(f"warning: {fault}; the rollout is skipped")

    def _measured(self, first: Scored, randomness: Randomness) -> Rollout:
        """Replace prompts that teach the algorithm nothing by the next ones of the loader, and measure the rollout."""
        collector, loader, algorithm = self._collector, self.loaders.train, self.algorithm

        refills = itertools.count(1)

        def request() -> Scored:
            rows, numbers = local_rows(loader.source.next())
            start = next(refills) * NEXT_REFILL
            own = replace(randomness, rows=tuple(start + number for number in numbers or (0,)))
            options = (algorithm.responses_per_prompt, own, bool(numbers), algorithm.greedy_baseline)
            return raise_on_all_ranks(collector.request, rows, *options)

        scored, metrics = teaching_only(first, request, algorithm.teaches, algorithm.max_refills)
        rollout = collector.measure(scored, algorithm.needs_values, algorithm.bootstraps)
        collector.metrics |= metrics
        return rollout

    def _report_empty(self, rows: int, responses: int) -> None:
        empty = self.algorithm.minibatches - responses // self.algorithm.rows_per_loss_group
        if empty > 0 and not self._reported_empty:
            print_once(f"a rollout of {rows} rows leaves {empty} of {self.algorithm.minibatches} minibatches empty")
            self._reported_empty = True

    def buffer(self, batch: Batch | None = None, seed: int = 0) -> RolloutBuffer:
        """Make a buffer of a prepared rollout; without one an empty buffer, to restore a state into."""
        return RolloutBuffer(
            batch or batch_of(dict.fromkeys(("tokens", "mask"), torch.zeros(1, 1)) | {"groups": torch.zeros(1)}),
            self.algorithm.weight,
            rows_per_loss_group=self.algorithm.rows_per_loss_group,
            epochs=self.algorithm.epochs,
            minibatches=self.algorithm.minibatches,
            accumulate=self._accumulate,
            seed=seed,
        )

    @property
    def single_pass(self) -> bool:
        """Each recorded pair is learned from in one step, whose own forward pass gives the log-probabilities before it."""
        steps = self.algorithm.epochs * self.algorithm.minibatches
        return self.stage.is_recorded and steps == 1 and not self.algorithm.prepare_reads_logprobs

    # -- during training -----------------------------------------------------------------------------------------------

    @property
    def _collector(self) -> Collector:
        assert self.collector is not None
        return self.collector

    def end_batch(self) -> bool:
        """Ask the algorithm whether to stop, if an optimiser step has ended.

        Returns:
            Whether the rollout is used up.
        """
        loader = self.loaders.train
        assert loader is not None
        assert loader.buffer is not None
        cursor, accumulate = loader.buffer.cursor, self._accumulate
        if cursor % accumulate == 0 and self.stopper.has_step:
            metrics = self.stopper.decide()
            if cursor == accumulate and "policy/ratio_max" in metrics:
                # the weights have not moved yet: a ratio other than 1 is the gap between the numerics of sampling and training
                self._collector.metrics["policy/ratio_first"] = metrics["policy/ratio_max"]
        return bool(loader.at_last_micro_batch)

    @property
    def step_is_pending(self) -> bool:
        """A checkpoint was written after an optimiser step and before `end_batch`."""
        loader = self.loaders.train
        return self.stopper.has_step or (loader is not None and loader.at_last_micro_batch)

    def metrics(self) -> dict[str, float]:
        """Return metrics of the rollout and of the algorithm, and the seconds since the rollout was collected."""
        seconds = time.perf_counter() - self._update_started
        return {**self._collector.metrics, **self.algorithm.metrics(), "time/update": seconds}

    def restore_metrics(self) -> None:
        """Give the collector the metrics of a checkpoint; a sharded strategy reads it after `on_fit_start`."""
        if self._restored_metrics:
            self._collector.metrics, self._restored_metrics = self._restored_metrics, {}

    def reset(self) -> None:
        """Forget an earlier run, which may have ended within a rollout."""
        self.stopper.reset()
        self._restored_metrics = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics of the present rollout."""
        return {"metrics": self.collector.metrics if self.collector else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the metrics of the rollout until there is a collector."""
        self._restored_metrics = state["metrics"]

"""Learning from rollouts: an algorithm, the loop of Lightning, and four methods that say who acts, generates and judges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.collector import Actor, Collector, ReferenceLogprobs, ResponseSource
from rlhf_lightning.rollouts.rollout_loader import RolloutLoader
from rlhf_lightning.stages.stage import Stage
from rlhf_lightning.training.checks import check_minimum
from rlhf_lightning.training.correction import Correction
from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.nonfinite import OnNonFinite
from rlhf_lightning.training.requirements import check_components
from rlhf_lightning.training.rewards import check_rewards, load_rewards
from rlhf_lightning.training.rollout_session import OnUnscored, RolloutSession
from rlhf_lightning.training.text import TextEncoding
from rlhf_lightning.training.update_stopper import UpdateStopper
from rlhf_lightning.types import Batch, LossOutput, RawRows, Rollout


class RolloutStage(Stage):
    """Optimise an actor with any algorithm; `PolicyStage` is the one whose actor is a language model.

    A subclass defines `configure_model`, which makes the networks, and four methods: `actor`, `generator`, `judge` and
    `reference`. Rows become batches by the collector, so `encode` is not called.

    Args:
        algorithm: PPO, DPO, REINFORCE, GRPO or one of your own.
        optimizer: makes the optimizer of the weights that train.
        lr_scheduler: makes a scheduler of the optimizer.
        on_nonfinite: stop the run at a step with a NaN or an infinity, or skip the step and count it.
        on_unscored: stop the run at a rollout in which no response has a score, or warn and skip the rollout.
        iterations: rollouts per Lightning epoch; by default one pass over the rows.
        text: tokenizer and encoder of a language model; None for an actor that reads no text.
        max_tokens_per_batch: tokens per forward pass of training; None splits no batch.
        correction: of rollouts whose generator is not the model that trains; see `training.correction`.
    """

    shown_metrics: ClassVar[tuple[str, ...]] = ("reward/mean",)

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None = None,
        on_nonfinite: OnNonFinite = "stop",
        on_unscored: OnUnscored = "stop",
        iterations: int | None = None,
        text: TextEncoding | None = None,
        max_tokens_per_batch: int | None = None,
        correction: Correction | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, on_nonfinite, text, max_tokens_per_batch)
        check_minimum(1, iterations=iterations)
        self.algorithm = algorithm
        self.stopper = UpdateStopper(self, algorithm)
        self.rollouts = RolloutSession(self, self.loaders, self.stopper, iterations, on_unscored, correction)
        self.resume.shared |= {"algorithm": algorithm, "rollouts": self.rollouts}
        self.resume.per_rank |= {"stopper": self.stopper}

    # -- models --------------------------------------------------------------------------------------------------------

    def actor(self) -> Actor:
        """Return the network that acts and learns, with its critic; available from `configure_model` on."""
        raise NotImplementedError

    def generator(self) -> ResponseSource:
        """Return the source of rollouts with the present weights of the actor."""
        raise NotImplementedError

    def judge(self) -> Reward | None:
        """Return the reward of rollouts; None where the generator brings `Completions.rewards`, or nothing is scored."""
        return None

    def reference(self) -> ReferenceLogprobs | None:
        """Build the reference that the algorithm compares the actor with; None without one. Called once per run."""
        return None

    def build_collector(self) -> Collector:
        """Load the frozen models, and build the collector of rollouts.

        Raises:
            UserError: the algorithm reads a reference and there is none.
        """
        judge, reference = self.judge(), self.reference()
        if reference is None and self.algorithm.needs_reference:
            raise UserError(
                f"{type(self).__name__} has no reference; {type(self.algorithm).__name__} compares the actor with one: set "
                "kl.coef to 0, or define reference()"
            )
        load_rewards({} if judge is None else {"mean": judge}, self.device)
        return Collector(self.generator(), judge, reference, 1.0)

    @property
    def is_recorded(self) -> bool:
        """Rollouts are made of recorded responses, by `recorded_rollout`, and nothing is generated."""
        return False

    @property
    def responses_per_row(self) -> int:
        """Rows of a rollout per row of the data."""
        return self.algorithm.responses_per_prompt

    def recorded_rollout(self, rows: RawRows, count: bool, policy: bool) -> Rollout:
        """Make a rollout of recorded responses.

        Args:
            rows: of this rank.
            count: False gives every row an empty mask.
            policy: False leaves the actor's log-probabilities 0.
        """
        raise NotImplementedError

    @property
    def network(self) -> Any:
        """The actor, under the name that `Stage` uses."""
        return self.actor()

    @property
    def collector(self) -> Collector | None:
        """The collector of rollouts; None before the first `fit`, `validate` or `test`."""
        return self.rollouts.collector

    # -- before training -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the reward, and bind the loaders, before weights are loaded."""
        judge = self.judge()
        check_components(self.algorithm, judge)
        self.validation.best |= check_rewards({} if judge is None else {"mean": judge})
        self.bind_loaders()
        self.rollouts.check_minibatches()

    def reset_run(self) -> None:
        """Forget also the rollout in which an earlier `fit` ended."""
        super().reset_run()
        self.rollouts.reset()

    def on_fit_start(self) -> None:
        """Load the frozen models: reference and rewards."""
        self.rollouts.prepare()

    def on_validation_start(self) -> None:
        """Load the frozen models for `validate` as for `fit`."""
        self.on_fit_start()

    def on_test_start(self) -> None:
        """Load the frozen models for `test` as for `fit`."""
        self.on_fit_start()

    def on_train_start(self) -> None:
        """Load the frozen models for a trial of a Tuner, which skips `on_fit_start`, and restore what a checkpoint held."""
        self.on_fit_start()
        self.rollouts.restore_metrics()
        super().on_train_start()

    # -- training ------------------------------------------------------------------------------------------------------

    def train_loader(self, loader: Iterable[Any]) -> RolloutLoader:
        """Make a loader of rollouts from a loader of rows."""
        return self.rollouts.loader(loader)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the divided loss; a zero while the rest of a rollout is skipped."""
        return torch.zeros((), device=self.device) if self.stopper.skipping else super().training_step(batch, index)

    def loss(self, batch: Batch) -> LossOutput:
        """Run the actor and ask the algorithm for its loss."""
        output = self.network(batch, self.algorithm.needs_entropy)
        if not self.rollouts.single_pass:
            return self.algorithm.loss(output, batch)
        before = replace(batch, logprobs=output.logprobs.detach())
        if batch.reference_logprobs is None:
            return self.algorithm.loss(output, before)
        drift = masked_sum(kl_estimate(before.logprobs, batch.reference_logprobs), batch.mask)
        loss = self.algorithm.loss(output, before)
        return replace(loss, means={**loss.means, "kl/reference": (drift, batch.mask.sum())})

    def loss_groups(self, batch: Batch) -> Tensor:
        """Return int64 [B]: rows with the same number are one group of the algorithm, such as a pair."""
        return super().loss_groups(batch) // self.algorithm.rows_per_loss_group

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute gradients, unless the rest of a rollout is skipped; with several ranks Lightning needs a loss all the same."""
        if not self.stopper.skipping:
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step, unless the rest of a rollout is skipped."""
        if self.stopper.skipping:
            self.stopper.skip_step(optimizer_closure)
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def record_step(self, micro_batches: list[MicroBatch], gradient_norm: Tensor) -> None:
        """Record the metrics of an optimiser step, also for `Algorithm.stop`."""
        self.stopper.record_step(micro_batches)
        super().record_step(micro_batches, gradient_norm)

    def row_of_metrics(self) -> dict[str, float]:
        """Return all metrics since the last logged row, those of the rollout first."""
        return self.metric_log.read(self.rollouts.metrics())

    def metrics_after_batch(self) -> dict[str, float]:
        """Return the metrics to log after a batch: those of the rollout, once it is used up."""
        return self.row_of_metrics() if self.rollouts.end_batch() else {}

    def metrics_after_resume(self) -> dict[str, float]:
        """Return the metrics of a step that was taken, but not ended, when the checkpoint was written."""
        return self.metrics_after_batch() if self.rollouts.step_is_pending else {}

    # -- held-out rows -------------------------------------------------------------------------------------------------

    def measure(self, rows: RawRows) -> None:
        """Generate one response per held-out row, and score it."""
        completions = self.generator().generate(rows, 1, self.validation.randomness(rows))
        judge = self.judge()
        self.validation.held_out.add_completions(completions, {} if judge is None else {"mean": judge})
        if judge is None and completions.rewards is not None:
            self.validation.held_out.add("reward/mean", completions.rewards.tolist())

"""The base of all stages: Lightning's hooks over the parts in `training/`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from rlhf_lightning.evaluation.base import Sample
from rlhf_lightning.models.export import add_model_card
from rlhf_lightning.models.sharding import full_state
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.rollouts.row_source import rows_of
from rlhf_lightning.training.checks import check_callbacks, check_nesting, check_trainer
from rlhf_lightning.training.lightning_compat import validation_follows
from rlhf_lightning.training.loaders import LoaderBinding
from rlhf_lightning.training.loss_step import LossStep, MicroBatch
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.training.network import evaluation
from rlhf_lightning.training.nonfinite import NonFiniteGuard, OnNonFinite
from rlhf_lightning.training.optimizers import build_optimizer, check_optimizer, scheduler_config
from rlhf_lightning.training.precision import check_device, keep_float32
from rlhf_lightning.training.random_states import random_states
from rlhf_lightning.training.resume import ResumeState
from rlhf_lightning.training.rows import check_rows
from rlhf_lightning.training.schedules import resolve_total_steps
from rlhf_lightning.training.text import TextEncoding
from rlhf_lightning.training.update_size import UpdateSize
from rlhf_lightning.training.validation import Validation
from rlhf_lightning.types import LossOutput, RawRows


class Stage(LightningModule):
    """A LightningModule that is cheap to construct, checked in `setup` and loaded in `configure_model`.

    Override `encode`, `loss`, `measure`, `predict` and `export`; see `rlhf_lightning.stages`. A subclass of this class also
    defines `setup`, which checks rows and calls `bind_loaders`, `configure_model`, which loads `network`, and `network`.

    Args:
        optimizer: makes the optimizer of the weights that train.
        lr_scheduler: makes a scheduler of the optimizer.
        on_nonfinite: stop the run at a step with a NaN or an infinity, or skip the step and count it.
        text: tokenizer and encoder of a language model; None for a network that reads no text.
        max_tokens_per_batch: tokens per forward pass of training; None splits no batch.
    """

    shown_metrics: ClassVar[tuple[str, ...]] = ("loss/policy",)
    """Metrics of training on the progress bar."""
    text: TextEncoding | None

    def __init__(
        self,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        on_nonfinite: OnNonFinite,
        text: TextEncoding | None = None,
        max_tokens_per_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.make_optimizer, self.make_lr_scheduler, self.text = optimizer, lr_scheduler, text
        self.loss_step = LossStep(self, max_tokens_per_batch)
        self.metric_log = MetricLog(self)
        self.nonfinite = NonFiniteGuard(self, on_nonfinite, self.metric_log)
        self.update_size = UpdateSize(self)
        self.validation = Validation(self, self.metric_log)
        self.loaders = LoaderBinding(self)
        self.resume = ResumeState(self, self.loaders)
        self.resume.shared |= {"nonfinite": self.nonfinite, "validation": self.validation}
        self.resume.per_rank["metrics"] = self.metric_log

    # -- override points -----------------------------------------------------------------------------------------------

    @property
    def network(self) -> Any:
        """All weights of the stage, a module with `probe_capabilities` and `backbones`; available from `configure_model` on."""
        raise NotImplementedError

    def encode(self, rows: RawRows) -> Any:
        """Encode rows of the data set.

        Args:
            rows: of this rank.

        Returns:
            A batch: a frozen dataclass of B rows with the fields `mask` and `weight`, such as `InstructionBatch`.
        """
        raise NotImplementedError

    def weigh(self, batch: Any) -> Tensor:
        """Return the weight [] of a batch of `encode`: the loss of a step is divided by the weight of all of its batches."""
        return batch.mask.sum()  # type: ignore[no-any-return]

    def loss_groups(self, batch: Any) -> Tensor:
        """Return int64 [B]: rows with the same number have a loss together, and are never separated."""
        return torch.arange(len(batch))

    def loss(self, batch: Any) -> LossOutput:
        """Return the loss of a micro-batch, a sum that is not divided, and its metrics."""
        raise NotImplementedError

    def measure(self, rows: RawRows) -> None:
        """Measure held-out rows of this rank into `self.validation.held_out`; called in eval mode, without gradient."""
        raise NotImplementedError

    def further_metrics(self) -> dict[str, float]:
        """Return held-out metrics that are no means of numbers, over all ranks; called once per validation."""
        return {}

    def predict(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """Return one dictionary per row for `predictions.jsonl`; called in eval mode, without gradient.

        Args:
            rows: of this rank.
            index: of the batch.
        """
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Save the trained model in Hugging Face form; every rank must call it, and rank 0 writes."""
        state = full_state(self.network)
        if self.trainer.is_global_zero:
            self.save_export(folder, state)
            add_model_card(self.trainer, self, folder)
        self.trainer.strategy.barrier()

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Save the model on rank 0.

        Args:
            folder: where to.
            state: full weights by their names in `network`, where it is sharded; else None.
        """
        raise NotImplementedError

    # -- for subclasses and callbacks ----------------------------------------------------------------------------------

    @property
    def validation_samples(self) -> list[Sample]:
        """Texts of the last validation or test, of all ranks."""
        return self.validation.samples

    @property
    def unmeasured_metrics(self) -> set[str]:
        """Metrics whose evaluation failed in the last validation."""
        return self.validation.unmeasured

    @property
    def best(self) -> dict[str, float]:
        """The highest mean score there can be, by metric, where a reward knows it."""
        return self.validation.best

    @property
    def response_generator(self) -> ResponseGenerator | None:
        """Generates responses with the present weights; None for a stage that generates no text."""
        return None

    @property
    def validation_rewards(self) -> Mapping[str, Reward]:
        """Rewards that validation measures; `mean` is the training reward."""
        return {}

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context of eval mode, without gradients, with unsharded weights; every rank must enter it."""
        return evaluation(self, self.network)

    def read_rows(self, batch: Any) -> RawRows:
        """Turn a batch of the data loader into rows; those of a stage that reads text have a prompt or messages."""
        return rows_of(batch, text=self.text is not None)

    def check_rows(self, read: Callable[[Any], object], wanted: str) -> None:
        """Refuse rows of another kind before weights are loaded.

        Args:
            read: reads a row; raises KeyError for a row without a column that it needs.
            wanted: which rows the stage learns from, for the message.
        """
        check_rows(self.trainer, read, f"{type(self).__name__} learns from {wanted}")

    def train_loader(self, loader: Iterable[Any]) -> Any:
        """Make the train loader of the stage from that of the data module."""
        return self.loaders.step_loader(loader, self.encode, self.weigh)

    def bind_loaders(self) -> None:
        """Check device and trainer, forget an earlier run, and wrap the loaders of the data module; see `setup`."""
        check_device(self.trainer.strategy.root_device)
        keep_float32(self.trainer.precision_plugin)
        if self.trainer.state.fn == "fit":
            check_trainer(self.trainer)
            check_optimizer(self.make_optimizer, self.trainer.precision)
            self.reset_run()
        self.loaders.bind(self.train_loader, self.read_rows)

    def reset_run(self) -> None:
        """Forget the state that an earlier `fit` with this stage left."""
        owners = (self.loss_step, self.metric_log, self.nonfinite, self.update_size, self.validation, self.loaders)
        for owner in (*owners, self.resume):
            owner.reset()

    def record_step(self, micro_batches: list[MicroBatch], gradient_norm: Tensor) -> None:
        """Record the metrics of an optimiser step that is taken."""
        self.metric_log.record_step(micro_batches, gradient_norm)

    def row_of_metrics(self) -> dict[str, float]:
        """Return all metrics since the last logged row, over all ranks; every rank must call it."""
        return self.metric_log.read()

    def metrics_after_batch(self) -> dict[str, float]:
        """Return the metrics to log after a batch: every `log_every_n_steps` optimiser steps, and none within a step."""
        due = self.metric_log.is_due and not self.loss_step.micro_batches
        return self.row_of_metrics() if due else {}

    def metrics_after_resume(self) -> dict[str, float]:
        """Return the metrics of a step that was taken, but not logged, when the checkpoint was written."""
        return self.metrics_after_batch() if self.metric_log.has_step else {}

    # -- hooks of Lightning --------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Add no callback; refuse those of the trainer that cannot work, before Lightning sets them up."""
        check_nesting(self.trainer)
        if self.trainer.state.fn == "fit":
            check_callbacks(self.trainer)
        return []

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Return the loss of `batch`, divided by the weight of its optimiser step."""
        return self.loss_step.backward(batch, self.loss, self.loss_groups(batch), self.network.backbones())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient before it is clipped; record the step, or refuse it where a number is not finite."""
        micro_batches, gradient_norm = self.loss_step.finish()
        if gradient_norm is not None and self.nonfinite.allows(micro_batches, gradient_norm):
            self.record_step(micro_batches, gradient_norm)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Keep the gradients: `LossStep` has computed those of this step's first micro-batches already."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step and free the gradients, which Lightning keeps through the next rollout and its first forward pass."""
        with self.update_size.measured():
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def on_train_start(self) -> None:
        """Restore random states, and log a step whose row comes after its checkpoint."""
        self.network.probe_capabilities()
        self.resume.start_training()
        self.metric_log.tell_loggers(self.metrics_after_resume())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the metrics of the optimiser step or the rollout that has ended."""
        self.metric_log.report(self.metrics_after_batch(), self.shown_metrics)
        self.validation.states_before = random_states() if validation_follows(self.trainer) else None

    def on_train_end(self) -> None:
        """Log metrics whose row training ended too early for."""
        self.metric_log.tell_loggers({} if self.metric_log.is_empty else self.row_of_metrics())

    def on_validation_epoch_start(self) -> None:
        """Forget an earlier validation."""
        self.validation.start()

    def validation_step(self, rows: RawRows, index: int) -> None:
        """Measure this rank's shard of a batch of held-out rows."""
        with self.evaluating():
            self.validation.measure(rows, self.measure)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out metrics."""
        self.validation.finish(self.further_metrics())

    on_test_epoch_start, test_step, on_test_epoch_end = (
        on_validation_epoch_start,
        validation_step,
        on_validation_epoch_end,
    )

    def predict_step(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """Predict this rank's shard of a batch."""
        with self.evaluating():
            return self.predict(rows, index) if rows else []

    def configure_optimizers(self) -> Any:
        """Build the optimizer of the weights that train, and the scheduler."""
        optimizer = build_optimizer(self.make_optimizer, [p for p in self.parameters() if p.requires_grad])
        self.resume.check_optimizers([optimizer])
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        resolve_total_steps(scheduler, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler)}

    @property  # type: ignore[misc]
    def strict_loading(self) -> bool:
        """A checkpoint holds all weights, unless the run trains an adapter."""
        return not self.resume.holds_adapter_alone

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the parts; of an adapter run drop the frozen base."""
        self.resume.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the parts; refuse the checkpoint of other weights."""
        self.resume.load(checkpoint)

    def teardown(self, stage: str) -> None:
        """Report truncated texts, and release the train loader and the step count of a checkpoint that was measured."""
        if self.text is not None:
            self.text.report_truncated()
        self.loaders.reset()  # a stage with a loader cannot be copied
        self.resume.release()

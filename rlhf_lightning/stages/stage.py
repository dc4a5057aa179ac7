"""What the stages share: tokenizer, loaders that resume, losses divided by the step, optimizers, metrics."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from rlhf_lightning.console import print_once
from rlhf_lightning.distributed import all_gather, any_rank, raise_on_all_ranks
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.adapters import is_adapted
from rlhf_lightning.models.backbone import eval_mode, supports_packing
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_model_config, load_tokenizer, stop_token_ids
from rlhf_lightning.models.micro_batches import micro_batches
from rlhf_lightning.models.sharding import full_state, shard_, unsharded
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.row_source import NO_BATCH, rows_of
from rlhf_lightning.rollouts.step_loader import ValidationLoader
from rlhf_lightning.training.checks import check_trainer
from rlhf_lightning.training.metrics import MetricAccumulator
from rlhf_lightning.training.nonfinite import MicroBatch, NonFinite, find_nonfinite, save_step
from rlhf_lightning.training.optimizers import build_optimizer, scheduler_config
from rlhf_lightning.training.precision import check_device, keep_float32
from rlhf_lightning.training.random_states import random_states, set_random_states
from rlhf_lightning.training.resume import rewind_to_step_start
from rlhf_lightning.training.schedules import resolve_total_steps
from rlhf_lightning.training.validation import Sample, ValidationMetrics
from rlhf_lightning.types import LossOutput, RawRows, RowsT

NetworkT = TypeVar("NetworkT", bound=nn.Module)
OnNonFinite = Literal["stop", "skip"]


class Stage(LightningModule):
    """A LightningModule on a language model: cheap to construct, checked in `setup`, loaded in `configure_model`."""

    def __init__(
        self,
        config: ModelConfig,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        on_nonfinite: OnNonFinite,
    ) -> None:
        super().__init__()
        self.config, self.make_optimizer, self.make_lr_scheduler = config, optimizer, lr_scheduler
        self.on_nonfinite = on_nonfinite
        self.parts: list[MicroBatch] = []
        self.skipped_steps = 0
        self.weights_changed = False
        """The weights are no longer those that `config` names."""
        self.steps_before: int | None = None
        self.random_states: dict[str, Any] | None = None
        self.validation_samples: list[Sample] = []
        self.best: dict[str, float] = {}
        self.accumulator = MetricAccumulator()
        self.held_out = ValidationMetrics()
        self.encoder: Encoder | None = None
        self.loader: Any = None
        self.loader_state: dict[str, Any] | None = None
        self.started = time.perf_counter()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; there from `setup` on."""
        return self.encoder_of_run.tokenizer

    @property
    def encoder_of_run(self) -> Encoder:
        """The encoder; there from `setup` on."""
        assert self.encoder is not None
        return self.encoder

    def load_encoder(self, max_prompt_length: int | None = None) -> Encoder:
        """Tokenizer, stop tokens and context of the model, without its weights."""
        model_config, tokenizer = load_model_config(self.config), load_tokenizer(self.config)
        stops = stop_token_ids(tokenizer, model_config, self.config)
        context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
        return Encoder(tokenizer, stops, context, max_prompt_length)

    def wrap_loaders(self, train: Callable[[Iterable[Any]], Any]) -> None:
        """Have the data module give Lightning `train(its train loader)`, and held-out rows by rank, all as they are.

        Raises:
            UserError: there is no data module, or a device that no stage can run on.
        """
        check_device(self.trainer.strategy.root_device)
        keep_float32(self.trainer.precision_plugin)
        if self.trainer.state.fn == "fit":
            check_trainer(self.trainer)
            self.reset_run()
        data: LightningDataModule | None = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError(
                f"{type(self).__name__} takes its rows from a data module, and there is none: give `data:` in the config, or in "
                "Python trainer.fit(stage, datamodule=LoaderData(train_loader, validation_loader)), from rlhf_lightning"
            )
        for name, wrap in {
            "train_dataloader": lambda loader: self._continued(train, loader),
            "val_dataloader": ValidationLoader,
            "test_dataloader": ValidationLoader,
            "predict_dataloader": ValidationLoader,
        }.items():
            if not is_overridden(name, data):  # Lightning skips what the data module does not have
                continue
            original = getattr(getattr(data, name), "original", getattr(data, name))
            setattr(data, name, _wrapped(original, wrap))

    def reset_run(self) -> None:
        """What an earlier `fit` with this stage left, which may have ended within a step."""
        self.parts, self.accumulator, self.skipped_steps = [], MetricAccumulator(), 0
        self.loader = self.loader_state = self.random_states = None

    def _continued(self, train: Callable[[Iterable[Any]], Any], rows: Iterable[Any]) -> Any:
        """Continue where the checkpoint says, also at the end of an epoch, where Lightning 2.6 drops a loader's state.

        Or where the loader was that this one replaces (`reload_dataloaders_every_n_epochs`).
        """
        state = self.loader.state_dict() if self.loader_state is None and self.loader is not None else self.loader_state
        self.loader, self.loader_state = train(rows), None
        if state is not None:
            self.loader.load_state_dict(state)
        return self.loader

    def epoch_of(self, whole: int) -> dict[str, Any]:
        """How many of so many batches Lightning takes in an epoch, and whether each epoch shall have the same.

        Raises:
            UserError: there are none.
        """
        if not whole:
            raise UserError(NO_BATCH)
        limit = self.trainer.limit_train_batches
        taken = min(whole, limit) if isinstance(limit, int) else int(whole * limit)
        return {"limit": max(1, taken), "repeat": bool(self.trainer.overfit_batches)}  # type: ignore[attr-defined]

    def rows_to_check(self) -> list[tuple[str, Any]]:
        """The data module's rows, where it shows them, with a name for messages."""
        data = getattr(self.trainer, "datamodule", None)
        named = [(name, getattr(data, f"{name}_rows", None)) for name in ("train", "validation", "test", "predict")]
        return [(f"{name} data", rows) for name, rows in named if rows is not None]

    def check_rows(self, reads: Callable[[Any], object], wanted: str) -> None:
        """Find rows of another kind before weights are loaded.

        Raises:
            UserError: `reads` misses a column of the first row.
        """
        for name, rows in self.rows_to_check():
            try:
                reads(rows[0]) if len(rows) else None
            except KeyError as error:
                raise UserError(
                    f"{type(self).__name__} learns from {wanted}; the {name} has: {', '.join(rows[0])}"
                ) from error

    def all_rows(self, size: int = 16) -> Iterator[RawRows]:
        """Every row to learn from or to measure once, `size` at a time; from the loaders of a data module that hides its rows."""
        shown = [rows for name, rows in self.rows_to_check() if name != "predict data"]
        for rows in shown:
            yield from (
                [rows[i] for i in range(start, min(start + size, len(rows)))] for start in range(0, len(rows), size)
            )
        used = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for name in () if shown else used[self.trainer.state.fn]:  # type: ignore[index]
            loader = getattr(self.trainer.datamodule, f"{name}_dataloader")  # type: ignore[attr-defined]
            original = _only(getattr(loader, "original", list)())
            yield from (rows_of(batch) for batch in (() if original is None else original))

    @property
    def accumulate(self) -> int:
        """Parts of an optimiser step."""
        return int(self.trainer.accumulate_grad_batches)

    @property
    def network(self) -> Any:
        """All weights of the stage, a module that can `probe_capabilities`; there from `configure_model` on."""
        raise NotImplementedError

    def placed(self, network: NetworkT) -> NetworkT:
        """The network, cut over the ranks where the strategy is FSDP2."""
        if self._trainer is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            shard_(network, self.device_mesh["data_parallel"])
        return network

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Eval mode, no gradient, the precision of training, whole weights; modes are put back. All ranks enter together."""
        precision = self.trainer.precision_plugin.forward_context()
        with eval_mode(self), unsharded(self.network), torch.no_grad(), precision:
            self.network.probe_capabilities()  # a rank without rows to measure would else do so later, alone, with weights that are cut
            yield

    def backward_loss(self, batch: RowsT, loss: Callable[[RowsT], LossOutput]) -> Tensor:
        """What `training_step` returns: the `loss` of `batch`, divided by the weight of the step.

        A batch of more than `max_tokens_per_batch` tokens is taken in pieces. The gradient of each but the last is taken here, so
        that the activations of one piece exist at a time.
        """
        shares = all(supports_packing(backbone) for backbone in self.network.backbones())
        *others, last = micro_batches(batch, self.loss_groups(batch), self.config.max_tokens_per_batch, shares)
        for micro_batch in others:
            share = self._divided(loss(micro_batch), micro_batch) / self.accumulate
            with torch.autocast(self.device.type, enabled=False):
                self.trainer.strategy.backward(share, None)
        return self._divided(loss(last), last)

    def loss_groups(self, batch: Any) -> Tensor:
        """int64 [B]: rows with the same number have a loss together, and are never separated."""
        return torch.arange(len(batch))

    def _divided(self, loss: LossOutput, batch: Any) -> Tensor:
        """A piece's share of the step's loss: Lightning divides by the accumulation and averages over ranks, so undo both."""
        self.parts.append(MicroBatch(batch, replace(loss, loss=loss.loss.detach())))
        return loss.loss.float() * (self.accumulate * self.trainer.world_size) / batch.weight

    def report(self, values: dict[str, float], shown: Iterable[str] = ()) -> None:
        """Log numbers that are of all ranks already, once; `shown` ones stand on the progress bar.

        Lightning would write them again with every step until they change, so the loggers are told directly.
        """
        self.tell_loggers(values)
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, logger=False, on_step=True, on_epoch=False, batch_size=1)

    def tell_loggers(self, values: dict[str, float]) -> None:
        """Log numbers without showing them; also where Lightning's own `log` is not allowed."""
        for logger in self.loggers if values else []:
            logger.log_metrics(values, step=self.global_step)

    def report_step(self, shown: Iterable[str]) -> None:
        """Log what the meter gathered since the last time, every `log_every_n_steps` optimiser steps; nothing within a step."""
        if not self.parts:
            self.report(self._step_metrics(), shown)

    def _step_metrics(self) -> dict[str, float]:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.pending_metrics() if every and self.global_step % every == 0 else {}

    def pending_metrics(self) -> dict[str, float]:
        """What was measured since the last report, over all ranks."""
        return {**self.accumulator.read(), "memory/peak": peak_memory()}

    def check_rewards(self, rewards: dict[str, Reward]) -> None:
        """Find what is wrong with rewards before weights are loaded, and note the best there can be."""
        for name, reward in rewards.items():
            if not isinstance(reward, Reward):
                raise UserError(f"the reward {name!r} is {reward!r:.60}; pass a Reward or a function of `responses`")
            reward.check()
            if reward.best is not None:
                self.best[f"val/reward/{name}"] = reward.best

    def check_columns(self, training: Iterable[Reward], held_out: Iterable[Reward]) -> None:
        """Find columns that rewards need and rows do not have, before weights are loaded."""
        for name, rows in self.rows_to_check():
            columns = {column for row in rows for column in row}
            rewards = {"train data": training, "predict data": ()}.get(name, held_out)
            for reward in rewards if columns else ():
                reward.check_columns(columns, name)

    def load_rewards(self, rewards: dict[str, Reward]) -> None:
        """Load what is heavy, onto this rank's device."""
        for reward in rewards.values():
            reward.load(self.device)

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier validation measured."""
        self.held_out, self.validation_samples = ValidationMetrics(), []
        self.sampler = torch.Generator(self.device).manual_seed(self.global_rank)

    def validation_step(self, rows: RawRows, index: int) -> None:
        """Measure this rank's share of a batch of held-out rows, which may be none."""
        self.held_out.begin_batch()
        with self.evaluation_mode():
            raise_on_all_ranks(lambda: self.measure_rows(rows) if rows else None)

    test_step = validation_step

    def measure_rows(self, rows: RawRows) -> None:
        """Measure held-out rows; called in eval mode, without gradient."""
        raise NotImplementedError

    def predict_step(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """What `predict` writes of this rank's share of a batch."""
        with self.evaluation_mode():
            return self.predict_rows(rows, index) if rows else []

    def predict_rows(self, rows: RawRows, index: int) -> list[dict[str, Any]]:
        """One dictionary a row; called in eval mode, without gradient."""
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        """Log the mean of every held-out number, over all ranks, also of the validation before the first step."""
        self.validation_samples = self.held_out.samples()
        values = self.held_out.means(self.device) | self.held_out_metrics()
        prefix, fitting = "test" if self.trainer.testing else "val", self.trainer.state.fn == "fit"
        # Lightning would log after checkpoints are written, and nothing of the validation before the first step
        if fitting:
            self.tell_loggers({f"{prefix}/{name}": value for name, value in values.items()})
        for name, value in values.items():
            shown = name in ("reward/mean", "reward/true", "preference/accuracy")
            self.log(f"{prefix}/{name}", value, prog_bar=shown, logger=not fitting, batch_size=1)

    def held_out_metrics(self) -> dict[str, float]:
        """What a stage measures besides means of numbers, over all ranks."""
        return {}

    on_test_epoch_start, on_test_epoch_end = on_validation_epoch_start, on_validation_epoch_end

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient before it is clipped, and take in what the step measured if all of it is finite.

        Raises:
            UserError: something is not, and `on_nonfinite` is stop.
        """
        parts, self.parts = self.parts, []
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if not parts or not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        scaled = (
            getattr(self.trainer.precision_plugin, "scaler", None) is not None
        )  # which skips infinite gradients itself
        fault = find_nonfinite(parts, None if scaled else norm)
        if any_rank(fault is not None, self.device):
            self._refuse_step(fault, parts, norm)
            return
        for part in parts:
            self.record_step(part.loss)
        one = torch.ones((), device=norm.device)
        share = {"optimizer/grad_norm": (norm / self.trainer.world_size, one / self.trainer.world_size)}
        self.accumulator.add(LossOutput(one, share))

    def record_step(self, loss: LossOutput) -> None:
        """Add what a part of a sound step measured to what will be logged."""
        self.accumulator.add(loss)

    def _refuse_step(self, fault: NonFinite | None, parts: list[MicroBatch], norm: Tensor) -> None:
        step, rank = self.global_step + 1, f".{self.global_rank}" if self.global_rank else ""
        path = Path(self.trainer.default_root_dir) / f"nan_batch{rank}.pt"
        text = f"step {step}: a number is not finite on another process; its message says which"
        if fault is not None:
            save_step(path, step, fault, parts, norm)
            text = (
                f"step {step}: {fault.metric} is {fault.value} in part {fault.part + 1} of {len(parts)}; the step was not "
                f"taken, its batch is in {path}"
            )
        if self.on_nonfinite == "stop":
            raise UserError(f"{text}; lower the learning rate, or leave such steps out with model.on_nonfinite: skip")
        self.skipped_steps += 1
        print_once(f"{text}; skipped, {self.skipped_steps} so far")
        for parameter in self.parameters():  # an optimizer leaves weights and moments alone where there is no gradient
            parameter.grad = None
        count = torch.tensor(float(self.skipped_steps), device=self.device)
        self.accumulator.add(LossOutput(count, maxima={"optimizer/skipped_steps": count}))

    def configure_optimizers(self) -> Any:
        """The optimizer of the weights that train; the scheduler steps with it, or with the metric that it waits for."""
        optimizer = build_optimizer(self.make_optimizer, [p for p in self.parameters() if p.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        resolve_total_steps(scheduler, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler)}

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Nothing: `optimizer_step` has freed those of the step before, and `backward_loss` has taken some of this one's already."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take the step and free the gradients, which Lightning keeps through the next rollout and its first forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def on_train_start(self) -> None:
        """Log a step that was taken when the checkpoint was written: its row comes after the checkpoint."""
        self.network.probe_capabilities()
        self.weights_changed = True
        self._restore_random_states()
        if "optimizer/grad_norm" in self.accumulator.sums:
            self.tell_loggers(self._step_metrics())

    def on_train_end(self) -> None:
        """Log what training ended too early to report."""
        if self.accumulator.sums:
            self.tell_loggers(self.pending_metrics())

    def _restore_random_states(self) -> None:
        if self.random_states is not None:
            set_random_states(self.random_states)
            self.random_states = None

    def rank_state(self) -> dict[str, Any]:
        """What differs from rank to rank; plain numbers and CPU tensors."""
        return {"accumulator": self.accumulator.state_dict(), "random": random_states()}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Restore it; random states only when training goes on, as much is drawn before."""
        self.accumulator.load_state_dict(state["accumulator"], self.trainer.strategy.root_device)
        self.random_states = state["random"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was measured; leave out what an adapter run does not train, which comes from where it came from before."""
        checkpoint["ranks"], checkpoint["skipped_steps"] = all_gather(self.rank_state()), self.skipped_steps
        if not self.strict_loading and "averaging_state" not in checkpoint:  # WeightAveraging reads all of it
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was measured.

        Raises:
            UserError: it is of a run that trained other weights; into an adapter run Lightning would take what fits.
        """
        self._check_weights(checkpoint.get("state_dict"))
        self.weights_changed = True
        if self._trainer is None:  # load_from_checkpoint wants the weights alone
            return
        if len(checkpoint["ranks"]) == self.trainer.world_size:
            self.load_rank_state(checkpoint["ranks"][self.global_rank])
        self.skipped_steps = checkpoint["skipped_steps"]
        fit_loop = checkpoint["loops"]["fit_loop"]
        rewind_to_step_start(fit_loop, self.accumulate)
        self.loader, self.loader_state = None, (fit_loop["state_dict"].get("combined_loader") or [None])[0]
        if self.trainer.state.fn != "fit":  # else what is measured would be logged as of step 0
            self.steps_before = self._count_as(checkpoint["global_step"])

    def _count_as(self, step: int) -> int:
        """Have the trainer say that so many steps are taken; gives what it said before."""
        loop = self.trainer.fit_loop.epoch_loop
        taken = loop.automatic_optimization.optim_progress.optimizer.step.total
        before, taken.completed, loop._batches_that_stepped = taken.completed, step, step
        return before

    def teardown(self, stage: str) -> None:
        """Say how many texts were cut, and let go of the loader and of the steps of a checkpoint that was only measured."""
        for what, count in self.encoder_of_run.truncated_counts.items():
            print_once(f"cut to fit: {count} {what}, counted each time they were read")
        self.encoder_of_run.truncated_counts.clear()
        self.loader = None  # a stage may be copied
        if self.steps_before is not None:
            self._count_as(self.steps_before)
            self.steps_before = None

    def _check_weights(self, saved: dict[str, Tensor] | None) -> None:
        if saved is None:
            return
        known, trained = self.state_dict(), {name for name, x in self.named_parameters() if x.requires_grad}
        own = {name: x.shape for name, x in known.items() if self.strict_loading or name in trained}
        theirs = {name: x.shape for name, x in saved.items() if name in own or name not in known}
        if other := sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)):
            raise UserError(
                f"the checkpoint is of a run that trains other weights than this run ({len(other)} differ, {other[0]} for "
                "one); go on with the model, algorithm, lora, critic and share_base that it was started with"
            )

    @property  # type: ignore[misc]
    def strict_loading(self) -> bool:
        """A checkpoint of an adapter run holds the adapter alone."""
        return not any(is_adapted(module) for module in self.children() for module in module.modules())

    def export(self, folder: Path) -> None:
        """Write the model in Hugging Face form; every rank calls it, the first one writes."""
        state = full_state(self.network)
        if self.trainer.is_global_zero:
            self.save_export(folder, state)
        self.trainer.strategy.barrier()

    def save_export(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        """Write the model in Hugging Face form: its own weights, or those of `state`, by their names in `network`."""
        raise NotImplementedError


def _wrapped(original: Callable[[], Any], wrap: Callable[[Any], Any]) -> Callable[[], Any]:
    def load() -> Any:
        loader = _only(original())
        return loader if loader is None or loader == [] else wrap(loader)

    load.original = original  # type: ignore[attr-defined]
    return load


def _only(loader: Any) -> Any:
    """The loader itself, also where it is alone in a list.

    Raises:
        UserError: there are several, which Lightning would take one after another or side by side.
    """
    if isinstance(loader, list | tuple) and any(isinstance(each, DataLoader) for each in loader):
        if len(loader) == 1:
            return loader[0]
    elif not isinstance(loader, dict | CombinedLoader):
        return loader
    raise UserError(
        "a stage takes one loader to learn from and one to measure with, and the data module gives several; put their rows into "
        "one, with a column that tells them apart"
    )


def check_minimum(least: int, **given: int | None) -> None:
    """Refuse numbers of a stage that are too small; null is none.

    Raises:
        UserError: naming the first of them.
    """
    for name, value in given.items():
        if value is not None and value < least:
            raise UserError(f"model.{name} is {value}; it must be at least {least}")


def peak_memory() -> float:
    """GiB that this process (on CUDA: its tensors) had at most."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes there, KiB elsewhere

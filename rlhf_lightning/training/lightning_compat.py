"""Private attributes of Lightning (tried on 2.6): the one file to read when a new version of Lightning breaks something."""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.fit_loop import _FitLoop as FitLoop
from lightning.pytorch.strategies import ModelParallelStrategy

from rlhf_lightning.rollouts.step_loader import REPLAY_STEP


class DeferredCLI(LightningCLI):
    """A LightningCLI that can parse alone, and whose config alone defines a run.

    Attributes:
        is_building: False makes construction parse, and neither seed random numbers, make classes nor run the subcommand.
    """

    is_building = True

    def _parse_ckpt_path(self) -> None:
        """Skip reading hyper-parameters from the checkpoint."""

    def _set_seed(self) -> None:
        if self.is_building:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Make the stage, the data module and the trainer, but not while parsing."""
        if self.is_building:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if self.is_building:
            super()._run_subcommand(subcommand)

    def seed(self) -> None:
        """Seed all random numbers as the config says."""
        self._set_seed()

    def run_subcommand(self) -> None:
        """Run the subcommand of the command line."""
        self._run_subcommand(str(self.subcommand))

    def trainer_options(self) -> Any:
        """Return the parsed options of the trainer, with the classes in them made."""
        return self._get(self.config_init, "trainer", default={})


def state_key(callback: Callback, **arguments: Any) -> str:
    """Return a key for the callback's state in checkpoints that tells several of one class apart by `arguments`."""
    return callback._generate_state_key(**arguments)


def has_trainer(module: LightningModule) -> bool:
    """Tell whether a trainer runs the module; `module.trainer` raises where none does."""
    return module._trainer is not None


def is_within_step(trainer: Trainer) -> bool:
    """Tell whether the optimiser step of the last batch is still to be taken."""
    return bool(trainer.fit_loop.epoch_loop._should_accumulate())


def stops_early(trainer: Trainer) -> bool:
    """Tell whether a callback asked training to stop and Lightning will follow."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def validation_follows(trainer: Trainer) -> bool:
    """Tell whether Lightning validates after the last batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


def cluster_environment(trainer: Trainer) -> ClusterEnvironment | None:
    """Return the environment that started the processes, such as SLURM."""
    return trainer._accelerator_connector.cluster_environment


def is_tuner_callback(callback: Callback) -> bool:
    """Tell whether a `Tuner` added the callback for one search and will remove it."""
    return bool(getattr(callback, "_early_exit", False))


def running_methods(trainer: Trainer) -> list[str]:
    """Return which of `fit`, `validate`, `test` and `predict` of the trainer run, the innermost first."""
    names = {getattr(Trainer, f"_{name}_impl").__code__: name for name in ("fit", "validate", "test", "predict")}
    frame, found = sys._getframe().f_back, []
    while frame is not None:
        if frame.f_code in names and frame.f_locals.get("self") is trainer:
            found.append(names[frame.f_code])
        frame = frame.f_back
    return found


def use_data_parallel_alone(strategy: ModelParallelStrategy) -> None:
    """Shard weights over all processes, with no tensor parallelism."""
    strategy._data_parallel_size, strategy._tensor_parallel_size = strategy.num_nodes * strategy.num_processes, 1


def set_global_step(trainer: Trainer, step: int) -> int:
    """Make `trainer.global_step`, and the step that loggers get, equal to `step`.

    Returns:
        The number of steps before.
    """
    loop = trainer.fit_loop.epoch_loop
    taken = loop.automatic_optimization.optim_progress.optimizer.step.total
    before, taken.completed, loop._batches_that_stepped = taken.completed, step, step
    return before


def train_loader_state(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of the train loader in a checkpoint of Lightning; None where there is none."""
    loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or [None]
    state: dict[str, Any] | None = loaders[0]
    return state


def rewind_to_step_start(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Move a checkpoint that was written within an optimiser step to the first micro-batch of that step.

    Such a checkpoint lacks the gradients of the micro-batches before it. Lightning writes one on an exception, and between two
    micro-batches by time or at a validation. The state of the train loader gets the mark `REPLAY_STEP`.

    Args:
        checkpoint: as Lightning read it; changed in place.
        accumulate: batches per optimiser step.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    progress = fit_loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    interrupted = current["ready"] > current["processed"]
    if not interrupted and (current["processed"] % accumulate == 0 or progress["is_last_batch"]):
        return
    start = current["processed"] // accumulate * accumulate
    earlier = total["ready"] - current["ready"]
    for counts, done in ((current, start), (total, earlier + start)):
        counts.update(ready=done, started=done, processed=done, completed=done)
    progress["is_last_batch"] = False
    if start:  # as if written right after the step before, whose validation Lightning then takes as done
        current["completed"] -= 1
        total["completed"] -= 1
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    for loader in fit_loop["state_dict"].get("combined_loader") or []:
        loader[REPLAY_STEP] = True


def ends_with_this_batch(trainer: Trainer) -> bool:
    """Tell whether training ends after the last batch: by `max_steps`, by `max_epochs`, or because a callback asked for it."""
    loop, limit = trainer.fit_loop, trainer.max_epochs or -1
    epoch: Any = loop.epoch_progress.current
    by_steps = 0 <= trainer.max_steps <= trainer.global_step
    by_epochs = loop.epoch_loop.batch_progress.is_last_batch and 0 < limit <= epoch.processed + 1
    return stops_early(trainer) or by_steps or by_epochs


def validate_within_fit(trainer: Trainer) -> None:
    """Run the validation loop, as Lightning does between two batches."""
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # else it skips the batches that the last validation before the checkpoint measured
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def rewind_validation(trainer: Trainer) -> None:
    """Make a checkpoint that is written within a validation resume at the first batch of that validation."""
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    done = progress.total.completed - progress.current.completed
    for counts, completed in ((progress.current, 0), (progress.total, done)):
        counts.ready = counts.started = completed + 1  # as within the first batch
        counts.processed = counts.completed = completed
    progress.is_last_batch = False


def restore_callback_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Give callbacks the metrics that they had when the checkpoint was written."""
    known = trainer._logger_connector._callback_metrics
    known.update({name: torch.tensor(value) for name, value in metrics.items() if name not in known})


def use_ending_loop(trainer: Trainer) -> None:
    """Make training run the end of an epoch and of the run also where the checkpoint is between it and the last batch."""
    if type(trainer.fit_loop) is FitLoop:
        trainer.fit_loop.__class__ = EndingLoop


class EndingLoop(FitLoop):
    """Runs the hooks of an end that came after the checkpoint, which Lightning 2.6 skips."""

    def run(self) -> None:
        """Train; where a resumed run has no step left, run the hooks of its start and of its end."""
        self.setup_data()
        if not self.skip or self.trainer.ckpt_path is None or not self.trainer.global_step:
            super().run()
            return
        self.reset()
        self.on_run_start()
        epoch: Any = self.epoch_progress.current
        if epoch.processed < epoch.started:
            self._end_epoch()
        self._restarting = False
        self.on_run_end()

    def reset(self) -> None:
        """Restore the loop; an epoch whose last batch was trained counts as ended once its hooks ran."""
        both: list[Any] = [self.epoch_progress.current, self.epoch_progress.total]
        before = both[0].processed
        super().reset()
        validation = self.epoch_loop.val_loop
        if validation.restarted_mid_evaluation:  # the batch that was not measured counts when it is measured
            total: Any = validation.batch_progress.total
            total.ready = total.started = total.processed
        self._owes_end_of_epoch = both[0].processed > before
        if self._owes_end_of_epoch:
            for counts in both:
                counts.processed, counts.completed = counts.processed - 1, counts.completed - 1

    def on_run_start(self) -> None:
        """Start, and end an epoch whose last batch was trained before the checkpoint."""
        super().on_run_start()
        if self._owes_end_of_epoch:
            self._end_epoch()

    def _end_epoch(self) -> None:
        loop = self.epoch_loop
        before, loop._batches_that_stepped = loop._batches_that_stepped, loop.global_step
        self.on_advance_end()
        loop._batches_that_stepped = before

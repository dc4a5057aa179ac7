"""Private attributes of Lightning (tried on 2.6): the one file to read when a new version of Lightning breaks something."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from rlhf_lightning.rollouts.step_loader import REPLAY_STEP


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

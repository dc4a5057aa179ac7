"""Lightning's own loop and callbacks around a stage: epochs cut short, loaders made anew, steps that were not taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Checkpoint,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import LoraOptions, ModelConfig
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.stages import PolicyStage, SupervisedStage
from rlhf_lightning.stages.stage import Stage
from rlhf_lightning.training.checks import check_callbacks

ROWS = [
    {"prompt": f"say {word}", "completion": word}
    for word in ("dog", "cat", "hello", "thanks", "please", "you", "the", "little")
]


class Rows(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(ROWS, batch_size=2, shuffle=True, collate_fn=list)  # type: ignore[arg-type]


def made(kind: str, folder: str, lora: LoraOptions | None = None) -> Stage:
    config, optimizer = ModelConfig(name_or_path=folder, lora=lora), partial(torch.optim.AdamW, lr=0.01)
    if kind == "sft":
        return SupervisedStage(config, optimizer=optimizer)
    algorithm, reward = GRPO(responses_per_prompt=2, epochs=2), LengthReward(2)
    return PolicyStage(config, algorithm, reward, "full", generation=Sampler(4), optimizer=optimizer)


class Watch(Callback):
    """Which prompts each epoch learned from, in their order; raises in the forward pass of a batch, counted from 1."""

    def __init__(self, fails_at: int = 0) -> None:
        self.epochs: list[list[str]] = []
        self.fails_at, self.batches = fails_at, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1] += pl_module.text.encoder.decode(
            batch.tokens[:, : batch.prompt_mask.shape[1]], batch.prompt_mask
        )

    def on_before_backward(self, *_: Any) -> None:
        self.batches += 1
        if self.batches == self.fails_at:
            raise RuntimeError("a fault")


def fitted(stage: Stage, root: Path, *callbacks: Callback, checkpoint: Path | None = None, **options: Any) -> Trainer:
    torch.manual_seed(3)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        callbacks=list(callbacks), **{"max_epochs": 2, **options},
    )  # fmt: skip
    trainer.fit(stage, datamodule=Rows(), ckpt_path=checkpoint)
    return trainer


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


def test_an_epoch_that_is_cut_short_has_as_many_batches_as_the_others(folder: str, tmp_path: Path) -> None:
    watch = Watch()
    trainer = fitted(made("sft", folder), tmp_path, watch, limit_train_batches=3, max_epochs=4)
    assert trainer.global_step == 12
    assert [len(prompts) for prompts in watch.epochs] == [6] * 4
    seen = [prompt for prompts in watch.epochs for prompt in prompts]
    assert all(sorted(seen[i : i + 8]) == sorted(seen[:8]) for i in (8, 16))  # every row is met as often


def test_an_accumulated_step_at_the_end_of_a_short_epoch_weighs_what_it_was_given(folder: str, tmp_path: Path) -> None:
    stage = made("sft", folder)
    weights = []

    class Weigh(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            weights.append((float(batch.weight), int(batch.mask.sum())))

    fitted(stage, tmp_path, Weigh(), limit_train_batches=3, accumulate_grad_batches=2, max_epochs=1)
    assert [weight for weight, _ in weights] == [weights[0][1] + weights[1][1]] * 2 + [weights[2][1]]


@pytest.mark.parametrize("limit", [4, 6, 0.25])
def test_rollouts_go_on_over_epochs_that_are_cut_short(limit: Any, folder: str, tmp_path: Path) -> None:
    watch = Watch()  # a rollout has two steps, a pass over the prompts eight
    trainer = fitted(made("grpo", folder), tmp_path, watch, limit_train_batches=limit, max_epochs=4)
    assert trainer.global_step == 4 * (limit if limit > 1 else 2)
    seen = [prompt for prompts in watch.epochs for prompt in prompts]
    assert len(set(seen[:32])) == min(8, len(seen) // 4)


def test_an_epoch_of_rollouts_does_not_end_within_an_accumulated_step(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an epoch of 3 batches ends within an optimiser step of 2"):
        fitted(made("grpo", folder), tmp_path, limit_train_batches=3, accumulate_grad_batches=2)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_overfitting_repeats_the_rows_of_the_first_epoch(kind: str, folder: str, tmp_path: Path) -> None:
    watch = Watch()
    fitted(made(kind, folder), tmp_path, watch, overfit_batches=2, max_epochs=3)
    first, *others = [sorted(set(prompts)) for prompts in watch.epochs]
    assert len(first) == (4 if kind == "sft" else 2)
    assert others == [first, first]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_loader_that_is_made_anew_goes_on(kind: str, folder: str, tmp_path: Path) -> None:
    epochs = []
    for every in (0, 1):
        watch = Watch()
        fitted(made(kind, folder), tmp_path, watch, reload_dataloaders_every_n_epochs=every)
        epochs.append(watch.epochs)
    assert epochs[0] == epochs[1]
    assert epochs[1][0] != epochs[1][1]


class EveryBatch(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.fit_loop.total_batch_idx}.ckpt")


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_checkpoint_within_a_step_goes_on_at_its_beginning(kind: str, folder: str, tmp_path: Path) -> None:
    whole, options = made(kind, folder), {"accumulate_grad_batches": 3, "max_epochs": 2 if kind == "sft" else 1}
    steps = fitted(whole, tmp_path, EveryBatch(), **options).global_step
    for batch in (0, 1, 3, 4):  # of sft the fourth batch is a step of its own, the last of its epoch
        resumed = made(kind, folder)
        trainer = fitted(resumed, tmp_path / "resumed", checkpoint=tmp_path / f"{batch}.ckpt", **options)
        assert trainer.global_step == steps
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)), batch


@pytest.mark.parametrize(("kind", "accumulate"), [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2)])
def test_a_step_that_an_exception_ended_is_taken_again(kind: str, accumulate: int, folder: str, tmp_path: Path) -> None:
    whole, resumed = made(kind, folder), made(kind, folder)
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 1}
    fitted(whole, tmp_path, **options)
    with pytest.raises(RuntimeError, match="a fault"):
        fitted(made(kind, folder), tmp_path, Watch(fails_at=4), OnExceptionCheckpoint(tmp_path, "fault"), **options)
    fitted(resumed, tmp_path, checkpoint=tmp_path / "fault.ckpt", **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class Ends(Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        raise RuntimeError("a fault")


@pytest.mark.parametrize("kind", ["sft", "grpo"])
@pytest.mark.parametrize("fault", [Ends, partial(Watch, fails_at=2)], ids=["after a step", "within a step"])
def test_a_stage_whose_run_failed_is_trained_anew(
    kind: str, fault: Callable[[], Callback], folder: str, tmp_path: Path
) -> None:
    stage = made(kind, folder)
    with pytest.raises(RuntimeError, match="a fault"):
        fitted(stage, tmp_path, fault(), log_every_n_steps=50)
    assert stage.loss_step.micro_batches or not stage.metric_log.is_empty
    told: list[dict[str, float]] = []
    stage.metric_log.tell_loggers = told.append  # type: ignore[method-assign,assignment]
    fitted(stage, tmp_path, max_steps=1, log_every_n_steps=50)
    assert sum("optimizer/grad_norm" in values for values in told) == 1
    assert not stage.loss_step.micro_batches
    assert stage.metric_log.is_empty


@pytest.mark.parametrize(
    "callback",
    [
        BackboneFinetuning(),
        BatchSizeFinder(),
        GradientAccumulationScheduler({1: 2}),
        LearningRateFinder(),
        ModelPruning("l1_unstructured"),
        StochasticWeightAveraging(1e-3),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_that_would_do_nothing_or_something_else_are_refused(
    callback: Callback, folder: str, tmp_path: Path
) -> None:
    stage = made("sft", folder)
    with pytest.raises(UserError, match=rf"^trainer.callbacks: {type(callback).__name__} cannot work here: "):
        fitted(stage, tmp_path, callback)
    assert not list(stage.parameters())  # no weight was loaded


class BothRows(Rows):
    def val_dataloader(self) -> Any:
        return DataLoader(ROWS[:2], batch_size=2, collate_fn=list)  # type: ignore[arg-type]


class ValidatesWithin(Callback):
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        trainer.validate(pl_module, datamodule=BothRows(), verbose=False)


def test_a_validation_that_a_training_hook_starts_is_refused_in_one_line(folder: str, tmp_path: Path) -> None:
    stage = made("sft", folder)
    with pytest.raises(
        UserError, match=r"^trainer.validate was called within trainer.fit, whose loops it would reset; "
    ):
        fitted(stage, tmp_path, ValidatesWithin())
    fitted(stage, tmp_path, max_epochs=1).validate(stage, datamodule=BothRows(), verbose=False)  # after fit it works


@pytest.mark.parametrize("callback", [OnExceptionCheckpoint("."), ModelCheckpoint(save_on_exception=True)])
def test_what_saves_on_an_exception_is_refused_on_several_processes(callback: Callback, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", devices=2, logger=False, callbacks=[callback], default_root_dir=tmp_path)
    with pytest.raises(
        UserError, match=rf"^trainer.callbacks: {type(callback).__name__} cannot save on an exception on 2"
    ):
        check_callbacks(trainer)
    check_callbacks(Trainer(accelerator="cpu", devices=1, logger=False, callbacks=[callback]))


def test_double_precision_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer.precision 64-true cannot work here"):
        fitted(made("sft", folder), tmp_path, precision="64-true")


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2, alpha=4)], ids=["full", "lora"])
def test_averaged_weights_go_on_and_a_stage_is_averaged_twice(
    lora: LoraOptions | None, folder: str, tmp_path: Path
) -> None:
    whole, resumed = made("sft", folder, lora), made("sft", folder, lora)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fitted(whole, tmp_path, EMAWeightAveraging(decay=0.5), keep)
    average = [x.detach().clone() for x in whole.parameters()]
    fitted(resumed, tmp_path, EMAWeightAveraging(decay=0.5), checkpoint=tmp_path / "step=3.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(average, resumed.parameters(), strict=True))
    fitted(whole, tmp_path, EMAWeightAveraging(decay=0.5))
    assert not all(torch.equal(a, b) for a, b in zip(average, whole.parameters(), strict=True))

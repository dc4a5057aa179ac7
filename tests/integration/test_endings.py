"""A finished run leaves the same folder however it was stopped, and wherever it was interrupted or repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kill import MOMENTS, differences, left
from leavings import ROLLOUTS, SMALL, lines, metrics

from rlhf_lightning.__main__ import main

CALLBACKS = """
from lightning.pytorch import Callback


class Stop(Callback):
    def __init__(self, at: str, step: int = 3):
        self.at, self.step = at, step

    def _stop(self, trainer, at):
        trainer.should_stop = trainer.should_stop or (at == self.at and trainer.global_step >= self.step)

    def on_train_batch_end(self, trainer, *_):
        self._stop(trainer, "batch")

    def on_validation_end(self, trainer, _):
        self._stop(trainer, "validation")

    def on_train_epoch_end(self, trainer, _):
        self._stop(trainer, "epoch")
        for logger in trainer.loggers:
            logger.log_metrics({"own/epochs": 1.0 + trainer.current_epoch}, trainer.global_step)
"""
STOP = ["--trainer.callbacks+", "stop.Stop", "--trainer.callbacks.at"]
EMA = ["--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks.decay", "0.5"]
EARLY = [
    "--trainer.callbacks+",
    "EarlyStopping",
    "--trainer.callbacks.patience",
    "1",
    "--trainer.callbacks.min_delta",
    "9",
]
SFT = ["--config", "sft.yaml", *SMALL, "--trainer.max_epochs", "3"]
REWARD = ["--config", "reward.yaml", *SMALL, "--trainer.max_epochs", "2"]
PPO = ["--config", "ppo.yaml", *SMALL, *ROLLOUTS]
EVERY_EPOCH = ["--trainer.check_val_every_n_epoch", "1"]
RUNS = {
    "reward, steps": [*REWARD, "--trainer.max_steps", "3"],
    "reward, epochs": REWARD,
    "sft, steps": [*SFT, "--trainer.max_steps", "5"],
    "sft, epochs without a validation": SFT,
    "sft, no validation at all": [*SFT, "--trainer.limit_val_batches", "0", "--trainer.max_steps", "5"],
    "sft, last batch of an epoch": [*SFT, "--trainer.max_steps", "4"],
    "sft, average": [*SFT, *EMA, "--trainer.max_steps", "5"],
    "sft, average by epochs": [*SFT, *EMA, "--trainer.callbacks.update_starting_at_epoch", "0"],
    "sft, stopped in a batch": [*SFT, *STOP, "batch"],
    "sft, stopped after a validation": [*SFT, *STOP, "validation", *EVERY_EPOCH],
    "sft, stopped at an epoch": [*SFT, *STOP, "epoch"],
    "sft, early": [*SFT, *EARLY, "--trainer.callbacks.monitor", "val/loss/policy", *EVERY_EPOCH],
    "sft, early within an epoch": [
        *SFT, *EARLY, "--trainer.callbacks.monitor", "val/loss/policy", *EVERY_EPOCH, "--trainer.val_check_interval", "0.5",
    ],
    "ppo, steps": [*PPO, "--trainer.max_steps", "3"],
    "ppo, stopped in a batch": [*PPO, *STOP, "batch"],
    "dpo, steps": ["--config", "dpo_offline.yaml", *SMALL, "--trainer.max_steps", "3"],
}  # fmt: skip
WINDOWS = {
    "the last step": ("rlhf_lightning.run.ending.Ending.on_train_end", "before"),
    "the end of the epoch": ("rlhf_lightning.run.ending.Ending.on_train_epoch_end", "before"),
    "the last validation": ("rlhf_lightning.run.ending.Ending.on_train_end", "after"),
    "the end of training": ("rlhf_lightning.run.summary.Summary.on_fit_end", "before"),
    "the summary": ("rlhf_lightning.run.summary.Summary.on_fit_end", "after"),
    "the export": ("rlhf_lightning.run.export.Export.on_fit_end", "after"),
}
"""Where a run is killed: before or after a hook at its end."""
QUICK = {"reward, steps", "sft, average", "sft, early", "sft, epochs without a validation", "ppo, steps"}


def _runs(quick: set[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in RUNS]


class Killed(BaseException):
    """As SIGKILL: nothing handles it."""


@pytest.fixture(autouse=True)
def _callbacks() -> None:
    Path("stop.py").write_text(CALLBACKS)


@pytest.mark.parametrize("name", _runs(QUICK))
def test_a_run_that_is_repeated_leaves_its_folder_as_it_is(name: str, run: Callable[..., Path]) -> None:
    words = ["fit", *RUNS[name], "--ckpt_path", "last"]
    before = left(run("out", *words))
    for _ in range(2):
        assert differences(before, left(run("out", *words))) == []


@pytest.mark.parametrize("name", _runs({"reward, steps", "sft, average"}))
def test_a_run_that_is_killed_at_its_end_leaves_the_same_folder(
    name: str, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", *RUNS[name], "--ckpt_path", "last"]
    whole = left(run("whole", *words))
    for number, window in enumerate(WINDOWS):
        _killed([*words, "--trainer.default_root_dir", f"out{number}"], *WINDOWS[window], monkeypatch)
        assert differences(whole, left(run(f"out{number}", *words))) == [], window


def _killed(words: list[str], hook: str, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        owner, name = hook.rsplit(".", 1)
        module, kind = owner.rsplit(".", 1)
        found = getattr(__import__(module, fromlist=[kind]), kind)
        original = getattr(found, name)

        def killed(self: Any, trainer: Any, *rest: Any) -> None:
            if when == "after":
                original(self, trainer, *rest)
            if name != "on_train_epoch_end" or trainer.global_step >= 3:
                raise Killed

        patch.setattr(found, name, killed)
        assert main([*words, "--trainer.enable_progress_bar", "false"]) == 1


def test_a_run_ends_with_a_validation(run: Callable[..., Path]) -> None:
    folder = run("out", "fit", *RUNS["reward, steps"])
    assert [row["step"] for row in metrics(folder) if row["val/reward/mean"]] == ["0", "1", "2", "3"]
    folder = run(
        "other",
        "fit",
        "--config",
        "reward.yaml",
        *SMALL,
        "--trainer.max_steps",
        "3",
        "--trainer.val_check_interval",
        "1.0",
    )
    assert [row["step"] for row in metrics(folder) if row["val/reward/mean"]] == ["0", "3"]
    assert all(row["after"] is not None for row in json.loads((folder / "summary.json").read_text()).values())
    assert json.loads((folder / "export" / "config.json").read_text())["score_std"] > 0


def test_what_the_end_measured_is_no_part_of_a_run_that_is_extended(run: Callable[..., Path]) -> None:
    words = ["fit", *SFT, "--ckpt_path", "last"]
    whole = left(run("whole", *words))
    run("out", *words, "--trainer.max_steps", "6")
    assert {row["step"] for row in lines(Path("out/samples.jsonl"))} == {0, 6}
    found = differences(whole, left(run("out", *words)))
    assert [line for line in found if not line.startswith("/checkpoints")] == []


def test_the_functions_in_which_runs_are_killed_are_there() -> None:
    assert [name for owner, name, _ in MOMENTS if not callable(getattr(owner, name, None))] == []

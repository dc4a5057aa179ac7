"""Responses do not depend on the number of processes, and a checkpoint of one number resumes on another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leavings import lines, metrics

from rlhf_lightning.__main__ import main

pytestmark = pytest.mark.distributed

SMALL = ["--data.size", "15", "--data.validation_size", "7", "--data.batch_size", "5", "--config", "ddp.yaml"]
EACH_STEP = """
trainer:
  callbacks:
    - class_path: Checkpoints
      init_args: {every_n_steps: 1, keep: 100}
"""
PPO = ["--config", "ppo.yaml", "--trainer.val_check_interval", "1.0"]
RUNS = {  # with the step of the checkpoint, which is within a rollout or an epoch
    "ppo": ([*PPO, "--model.iterations", "2", "--model.algorithm.minibatches", "1"], 1),
    # a later rollout has other minibatches on another number of processes
    "ppo_minibatches": ([*PPO, "--model.iterations", "1", "--model.algorithm.minibatches", "2"], 1),
    "dpo_offline": (["--config", "dpo_offline.yaml", "--trainer.val_check_interval", "1.0"], 2),
    "reward": (["--config", "reward.yaml", "--trainer.val_check_interval", "1.0"], 2),
    "sft": (["--config", "sft.yaml", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"], 2),
}
Run = Callable[..., Path]


@pytest.fixture
def run_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run_on_one("out", "fit", …)` runs a command in this process and returns its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saving.yaml").write_text(EACH_STEP)

    def command(folder: str, *words: str) -> Path:
        options = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
        with monkeypatch.context() as patch:
            patch.setenv("RLHF_LIGHTNING_DEBUG", "1")
            where = ["--trainer.default_root_dir", folder]
            assert main([*words, *options, "--trainer.devices", "1", "--trainer.strategy", "auto", *where]) == 0
        return tmp_path / folder

    return command


def numbers(folder: Path, after: int = -1) -> list[dict[str, float]]:
    """Rows of metrics after a step, without clocks and memory."""
    clocks = ("time/", "memory/", "throughput/")
    return [
        {name: float(x) for name, x in row.items() if x and not name.startswith(clocks)}
        for row in metrics(folder)
        if int(row["step"]) > after
    ]


def assert_alike(one: Path, other: Path, after: int = -1) -> None:
    rows = numbers(one, after)
    assert rows
    for first, second in zip(rows, numbers(other, after), strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-5)


def texts(folder: Path) -> list[tuple[Any, Any, Any]]:
    rows = lines(folder / "samples.jsonl")
    last = max(row["step"] for row in rows)
    return [(row["step"], row["prompt"], row["response"]) for row in rows if row["step"] == last]


def test_one_process_and_two_generate_the_same_responses(run_on_one: Run, run_on_two: Run) -> None:
    words = ["fit", *RUNS["ppo"][0], *SMALL]
    one, two = run_on_one("one", *words), run_on_two("rollouts-two", *words)
    assert any("reward/mean" in row for row in numbers(one))
    assert_alike(one, two)
    assert texts(one) == texts(two)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_two_processes_resumes_on_one_and_the_reverse(
    name: str, pair: Any, run_on_one: Run, run_on_two: Run
) -> None:
    (pair.folder / "saving.yaml").write_text(EACH_STEP)
    words, step = RUNS[name]
    words = ["fit", *words, *SMALL, "--config", "saving.yaml"]
    for whole, resume in (
        (run_on_two(f"{name}-whole-two", *words), run_on_one),
        (run_on_one("whole", *words), run_on_two),
    ):
        checkpoint = str(whole / f"checkpoints/step-{step}.ckpt")
        resumed = resume(f"{name}-other-{whole.name}", *words, "--ckpt_path", checkpoint)
        assert_alike(whole, resumed, step)
        if (whole / "samples.jsonl").exists():
            assert texts(whole) == texts(resumed)

"""What befalls a run costs it nothing that was saved, and is said in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kill import differences, left
from leavings import column, differing, equal, metrics, weights

from rlhf_lightning.__main__ import main
from tests.guarded import python_path

OWN = """
import os, signal
from dataclasses import dataclass, replace
from pathlib import Path
import torch
from lightning.pytorch import Callback
from rlhf_lightning.algorithms.ppo import PPO

@dataclass
class Odd(PPO):
    bad: int = 10
    factor: str = "nan"
    def __post_init__(self):
        super().__post_init__()
        self.calls = 0
    def loss(self, output, batch):
        found, self.calls = super().loss(output, batch), self.calls + 1
        if self.calls != self.bad:
            return found
        total, count = found.means["loss/value"]
        factor = float(self.factor)
        return replace(found, loss=found.loss * factor, means={**found.means, "loss/value": (total * factor, count)})

class Call(Callback):
    def __init__(self, step: int, what: str):
        self.step, self.what = step, what
    def on_before_backward(self, trainer, stage, loss):
        if trainer.global_step == self.step and self.what == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        if trainer.global_step == self.step and self.what == "memory":
            torch.empty(2**60, dtype=torch.uint8)

def judge_twice(responses):
    count = len(list(Path(".").glob("asked-*")))
    if Path("fail").exists():
        Path(f"asked-{count}").touch()
        if count == int(Path("fail").read_text()):
            raise ConnectionError("the server is gone")
    return torch.rand(len(responses)).tolist()

def judge(responses):
    count = len(list(Path(".").glob("asked-*")))
    if Path("fail").exists():
        Path(f"asked-{count}").touch()
        if count == 4:
            raise ConnectionError("the server is gone")
    return [float(len(response)) for response in responses]
"""
SMALL = ["--data.size", "16", "--data.validation_size", "4", "--data.batch_size", "4", "--model.iterations", "4"]
PPO = [
    "fit",
    "--config",
    "ppo.yaml",
    *SMALL,
    "--model.algorithm.minibatches",
    "2",
    "--trainer.val_check_interval",
    "0.5",
]
QUIET = ["--trainer.enable_progress_bar", "false"]
ODD = [*PPO, "--model.algorithm", "own.Odd", "--model.algorithm.minibatches", "2", "--model.algorithm.epochs", "2"]


@pytest.fixture(autouse=True)
def _own() -> Iterator[None]:
    Path("own.py").write_text(OWN)
    yield
    sys.modules.pop("own", None)


def call(step: int, what: str) -> list[str]:
    Path("call.yaml").write_text(
        f"trainer:\n  callbacks:\n  - class_path: own.Call\n    init_args: {{step: {step}, what: {what}}}\n"
    )
    return ["--config", "call.yaml"]


@pytest.mark.parametrize("factor", ["nan", "inf"])
def test_a_number_that_is_not_finite_stops_the_run_before_the_step(
    factor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*ODD, "--model.algorithm.factor", factor, "--trainer.default_root_dir", "out", *QUIET]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"step 10: loss/value is {factor} in micro-batch 1 of 1; the step was not taken, its batch is in out/nan_batch.pt"
        in said
    )
    kept = torch.load("out/nan_batch.pt", weights_only=True)
    assert (kept["step"], kept["metric"], kept["micro_batch"]) == (10, "loss/value", 0)
    assert {"tokens", "mask", "logprobs", "advantages", "returns"} <= kept["batches"][0].keys()
    checkpoint = torch.load("out/checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_such_a_step_is_left_out_and_counted_on_demand(run: Callable[..., Path]) -> None:
    folder = run("out", *ODD, "--model.on_nonfinite", "skip")
    assert column(folder, "optimizer/skipped_steps") == [1.0]
    assert all(value.isfinite().all() for value in weights(folder / "export").values())
    assert all(float(x) == float(x) for row in metrics(folder) for x in row.values() if x)
    assert (folder / "nan_batch.pt").is_file()


def test_a_step_that_is_left_out_changes_no_weight(run: Callable[..., Path]) -> None:
    words = [*ODD, "--model.algorithm.bad", "4", "--model.on_nonfinite", "skip", "--trainer.val_check_interval", "1.0"]
    three, four = (run(f"steps-{n}", *words, "--trainer.max_steps", str(n)) for n in (3, 4))
    assert equal(weights(three / "export"), weights(four / "export"))


@pytest.mark.parametrize("step", [3, 5])
def test_sigterm_ends_the_step_saves_and_is_the_exit_status(
    step: int, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run("whole", *PPO)
    words = [*PPO, "--trainer.default_root_dir", "out", *QUIET]
    assert main([*words, *call(step, "terminate")]) == 143
    assert "stopped by SIGTERM after a checkpoint was saved" in capsys.readouterr().err
    assert Path("out/checkpoints/last.ckpt").resolve().name == f"step-{step + 1}.ckpt"
    resumed = run("out", *PPO, "--ckpt_path", "last")
    assert differences(left(whole), left(resumed)) == []


def test_a_reward_that_fails_leaves_a_checkpoint_from_which_the_run_goes_on_exactly(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*PPO, "--model.reward", "FunctionReward", "--model.reward.function", "own.judge"]
    words += ["--trainer.val_check_interval", "1.0"]
    whole = run("whole", *words)
    Path("fail").touch()
    assert main([*words, "--trainer.default_root_dir", "out", *QUIET]) == 2
    assert "the server is gone" in capsys.readouterr().err.splitlines()[-1]
    assert Path("out/checkpoints/last.ckpt").resolve().name == "step-12.ckpt"
    Path("fail").unlink()
    resumed = run("out", *words, "--ckpt_path", "last")
    assert differences(left(whole), left(resumed)) == []


@pytest.mark.parametrize(("call", "step"), [(4, 4), (5, 4), (9, 8)])
def test_a_reward_that_fails_in_a_validation_leaves_a_checkpoint_that_repeats_the_validation(
    call: int, step: int, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls: two for held-out rows before the first step, two rollouts, two for held-out rows, two rollouts, two again."""
    words = [*PPO, "--data.validation_size", "8", "--model.algorithm.epochs", "1"]
    words += ["--model.reward", "FunctionReward", "--model.reward.function", "own.judge_twice"]
    whole = run("whole", *words)
    Path("fail").write_text(str(call))
    assert main([*words, "--trainer.default_root_dir", "out", *QUIET]) == 2
    assert "the server is gone" in capsys.readouterr().err.splitlines()[-1]
    assert Path("out/checkpoints/last.ckpt").resolve().name == f"step-{step}.ckpt"
    Path("fail").unlink()
    resumed = run("out", *words, "--ckpt_path", "last")
    assert column(resumed, "val/reward/mean") == column(whole, "val/reward/mean")
    assert differences(left(whole), left(resumed)) == []


def test_a_damaged_newest_checkpoint_costs_a_few_steps_and_nothing_else(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run("whole", *PPO)
    run("out", *PPO)
    newest = Path("out/checkpoints/last.ckpt").resolve()
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert main([*PPO, "--trainer.default_root_dir", "out", "--ckpt_path", "out/checkpoints/last.ckpt"]) == 2
    assert "is damaged: it is truncated or no checkpoint; pass step-8.ckpt beside it" in capsys.readouterr().err
    resumed = run("out", *PPO, "--ckpt_path", "last")
    assert "trying the one before" in capsys.readouterr().out
    assert differing(resumed, whole) == []
    assert equal(weights(resumed / "export"), weights(whole / "export"))


def test_out_of_memory_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PPO, *call(2, "memory"), "--trainer.default_root_dir", "out", *QUIET]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (asked for 1152921504606846976 bytes)" in said
    assert "GiB of this machine are free" in said
    rows, tokens = map(int, re.search(r"(\d+) rows of up to (\d+) tokens", said).groups())  # type: ignore[union-attr]
    assert f"max_tokens_per_batch: {rows * tokens // 2} (now 2048) beside the model's name" in said


def test_out_of_memory_while_writing_names_what_changes_no_response(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity …")

    monkeypatch.setattr("rlhf_lightning.generation.continuous.SlotCache", full)
    assert main([*PPO, "--trainer.default_root_dir", "out", *QUIET]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (asked for 2.00 GiB)" in said
    assert "lower generation.max_batch_size, now 256, which changes no response, or data.batch_size, now 4" in said


def test_random_states_of_every_library_go_on(run: Callable[..., Path]) -> None:
    Path("noise.py").write_text(
        "import random, numpy, torch\n"
        "def judge(responses):\n"
        "    return [random.random() + numpy.random.rand() + float(torch.rand(())) for _ in responses]\n"
    )
    words = [*PPO, "--model.reward", "FunctionReward", "--model.reward.function", "noise.py:judge"]
    whole = run("whole", *words)
    assert main([*words, *call(3, "terminate"), "--trainer.default_root_dir", "out", *QUIET]) == 143
    resumed = run("out", *words, "--ckpt_path", "last")
    assert differing(resumed, whole) == []


def test_a_validation_in_the_middle_of_a_rollout_changes_nothing_that_is_logged_of_it(run: Callable[..., Path]) -> None:
    words = ["fit", "--config", "dpo_offline.yaml", "--data.size", "16", "--data.validation_size", "4"]
    words += ["--data.batch_size", "8", "--model.algorithm.minibatches", "2"]
    seldom, often = (run(f"every-{n}", *words, "--trainer.val_check_interval", str(n)) for n in (2, 1))
    trained = [
        [{k: v for k, v in row.items() if v and not k.startswith("val/")} for row in metrics(folder)]
        for folder in (seldom, often)
    ]
    assert [row for row in trained[1] if row.keys() != {"step"}] == [
        row for row in trained[0] if row.keys() != {"step"}
    ]


def test_slurm_is_asked_to_queue_the_job_again(tmp_path: Path) -> None:
    Path("scontrol").write_text("#!/bin/sh\necho $@ > asked\n")
    Path("scontrol").chmod(0o755)
    code = "from rlhf_lightning.run.signals import requeue; requeue()"
    slurm = {
        "SLURM_JOB_ID": "7",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": python_path(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **slurm}, capture_output=True, text=True, check=True
    )
    assert Path("asked").read_text() == "requeue 7\n"
    assert done.stdout == "job 7: queued again\n"

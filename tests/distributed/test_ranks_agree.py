"""Two processes compute what one does, wait for each other whatever befalls one of them, and are started by one command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from algorithm_kinds import OFFLINE_RUNS
from leavings import column, metrics, weights

from rlhf_lightning.__main__ import main
from tests.guarded import python_path
from tests.ties import REFILLED

pytestmark = pytest.mark.distributed

SFT = ["--config", "sft.yaml", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
SMALL = ["--data.size", "16", "--data.validation_size", "7"]
RECORDED = {
    "sft": SFT,
    "sft_accumulated": [*SFT, "--trainer.accumulate_grad_batches", "2"],
    "reward": ["--config", "reward.yaml"],
    "dpo_offline": ["--config", "dpo_offline.yaml", "--model.reference", "full"],
    **OFFLINE_RUNS,
}
PPO = ["--config", "ppo.yaml", "--config", "ddp.yaml", *SMALL, "--model.iterations", "2"]
ROLES = (("user", "please"), ("assistant", "thanks"))
TWO_MINIBATCHES = ["--model.algorithm.minibatches", "2", "--data.batch_size", "4"]


def numbers(folder: Path) -> list[dict[str, float]]:
    """What both must say alike: not what is sampled, and no clock."""
    return [
        {n: float(x) for n, x in row.items() if x and not n.startswith(("val/re", "val/kl", "policy/"))}
        for row in metrics(folder)
    ]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", RECORDED)
def test_one_process_and_two_take_the_same_steps(
    name: str,
    strategy: str,
    run_on_two: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    words = ["fit", *RECORDED[name], *SMALL, "--data.batch_size", "5"]
    two = run_on_two(f"{name}-{strategy}-two", *words, "--config", f"{strategy}.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--trainer.default_root_dir", "one", "--trainer.enable_progress_bar", "false"]) == 0
    alone, raise_on_all_ranks = weights(tmp_path / "one/export"), weights(two / "export")
    assert all(torch.allclose(alone[key], raise_on_all_ranks[key], atol=2e-4) for key in alone)
    for first, second in zip(numbers(tmp_path / "one"), numbers(two), strict=True):
        assert first == pytest.approx(second, rel=2e-3, abs=1e-4)


ONE_MINIBATCH = ["--model.algorithm.minibatches", "1", "--model.algorithm.epochs", "2", "--model.iterations", "3"]
"""Each process splits its own prompts into minibatches, so with several of them the steps depend on the processes."""
GENERATED = {
    "refilled": [*REFILLED, *ONE_MINIBATCH],
    "refilled_to_a_smaller_rollout": [*REFILLED, *ONE_MINIBATCH, "--model.algorithm.max_refills", "1"],
    "ppo_with_holes": [
        *("--config", "ppo.yaml", *ONE_MINIBATCH, "--model.generation", "tests.holes.ReadingSampler"),
        *("--model.algorithm.bootstrap_truncated", "true", "--model.generation.max_new_tokens", "8"),
    ],
}
"""Runs whose rollouts are generated: the same random numbers give the same responses on any number of processes."""


@pytest.mark.parametrize(
    ("name", "strategy"),
    [(name, "ddp") for name in GENERATED] + [("refilled", "fsdp"), ("ppo_with_holes", "fsdp")],
)
def test_one_process_and_two_generate_and_learn_alike(
    name: str, strategy: str, run_on_two: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["fit", *GENERATED[name], *SMALL, "--data.batch_size", "5", "--trainer.val_check_interval", "1.0"]
    two = run_on_two(f"{name}-{strategy}-two", *words, "--config", f"{strategy}.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--trainer.default_root_dir", "one", "--trainer.enable_progress_bar", "false"]) == 0
    alone, together = weights(tmp_path / "one/export"), weights(two / "export")
    assert all(torch.allclose(alone[key], together[key], atol=2e-4) for key in alone)
    for first, second in zip(metrics(tmp_path / "one"), metrics(two), strict=True):
        assert {n: float(x) for n, x in first.items() if x} == pytest.approx(
            {n: float(x) for n, x in second.items() if x}, rel=5e-3, abs=1e-3
        )
    if name.startswith("refilled"):
        assert max(column(two, "rollout/requests")) > 1


def test_recorded_turns_are_learned_alike(
    run_on_two: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A conversation of several turns is one row with holes: the user's later turns, which the policy reads."""
    animals = "duck owl wolf fox hen cat dog cow".split()
    rows = [
        {"messages": [{"role": role, "content": f"{a} {b} ."} for a in (animal, other) for role, b in ROLES]}
        for animal in animals
        for other in animals[:3]
    ]
    path = tmp_path / "turns.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["fit", *SFT, "--model.model.chat_template", "dialogue", "--data", "InstructionData"]
    words += ["--data.train", str(path), "--data.batch_size", "5"]
    two = run_on_two("turns-two", *words, "--config", "ddp.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--trainer.default_root_dir", "one", "--trainer.enable_progress_bar", "false"]) == 0
    alone, together = weights(tmp_path / "one/export"), weights(two / "export")
    assert all(torch.allclose(alone[key], together[key], atol=2e-4) for key in alone)
    for first, second in zip(numbers(tmp_path / "one"), numbers(two), strict=True):
        assert first == pytest.approx(second, rel=2e-3, abs=1e-4)


def test_a_process_without_a_row_keeps_step(run_on_two: Callable[..., Path]) -> None:
    generate = ["--config", "fsdp.yaml", "--model.generation", "TransformersGenerate"]
    one_step = ["--model.algorithm.minibatches", "1", "--model.iterations", "8"]
    for name, words in {
        "ppo": [*PPO, *one_step],
        "generate": [*PPO, *one_step, *generate],
        "reward": ["--config", "reward.yaml", "--config", "ddp.yaml", *SMALL],
        "dpo_offline": ["--config", "dpo_offline.yaml", "--config", "ddp.yaml", *SMALL],
    }.items():
        limited = [*words, "--trainer.max_steps", "8", "--data.batch_size", "1", "--trainer.limit_val_batches", "1"]
        rows = metrics(run_on_two(f"{name}-one-row", "fit", *limited))
        assert int(rows[-1]["step"]) == 8


OPTIMIZERS = {
    "bitsandbytes.optim.AdamW8bit": "AdamW8bit of bitsandbytes cannot step on weights that are sharded over processes (fsdp2)",
    "torch.optim.SGD": "SGD without momentum keeps nothing",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_does_not_know_cut_weights_is_refused(name: str, pair: object) -> None:
    words = ["--config", "sft.yaml", "--config", "fsdp.yaml", *SMALL, "--trainer.accelerator", "cpu"]
    words += ["--trainer.devices", "2", "--trainer.default_root_dir", "eight-bits", "--model.lr_scheduler", "null"]
    assert pair.run("fit", *words, "--model.optimizer", name) == [2, 2]  # type: ignore[attr-defined]
    assert OPTIMIZERS[name] in pair.said()  # type: ignore[attr-defined]


def test_a_reward_that_fails_on_one_process_stops_both_and_leaves_a_checkpoint(
    pair: object, run_on_two: Callable[..., Path]
) -> None:
    Path(pair.folder / "failing.py").write_text(  # type: ignore[attr-defined]
        "import os, pathlib\n"
        "calls, once = [], pathlib.Path('failed-once')\n"
        "def judge(responses, prompts):\n"
        "    calls.append(len(responses))\n"
        "    if os.environ['RANK'] == '1' and len(calls) == 5 and not once.exists():\n"
        "        once.touch()\n"
        "        raise ConnectionError('the server is gone')\n"
        "    return [float(len(response)) for response in responses]\n"
    )
    reward = ["--model.reward", "FunctionReward", "--model.reward.function", "failing.py:judge"]
    words = [*PPO, *TWO_MINIBATCHES, "--model.iterations", "5", *reward, "--trainer.val_check_interval", "1.0"]
    common = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.default_root_dir", "failing"]
    assert pair.run("fit", *words, *common) == [2, 2]  # type: ignore[attr-defined]
    said = [pair.said(rank) for rank in range(2)]  # type: ignore[attr-defined]
    assert "the server is gone" in said[1]
    assert "another rank of this run failed" in said[0]
    assert list((pair.folder / "failing/checkpoints").glob("step-*.ckpt"))  # type: ignore[attr-defined]
    run_on_two("failing", "fit", *words, "--ckpt_path", "last")


def test_one_command_starts_both_and_sigterm_ends_both_with_a_checkpoint(tmp_path: Path) -> None:
    words = [*PPO, *TWO_MINIBATCHES, "--model.iterations", "400", "--trainer.val_check_interval", "1.0"]
    command = [sys.executable, "-m", "rlhf_lightning", "fit", *words, "--trainer.devices", "2"]
    command += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    path = tmp_path / "out/metrics.csv"
    try:
        while not (path.is_file() and len(path.read_text().splitlines()) > 3):
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143, said
    assert "stopped by SIGTERM after a checkpoint was saved" in said
    assert (tmp_path / "out/checkpoints/last.ckpt").exists()


def test_two_processes_share_the_batches_of_a_stream(
    run_on_two: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    animals = "duck owl wolf fox hen cat dog cow".split()
    rows = [{"prompt": f"tell me about a {a} .", "completion": f"{b} ."} for a in animals for b in animals]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["fit", *SFT, "--data", "InstructionData", "--data.train", str(path), "--data.streaming", "true"]
    words += ["--data.batch_size", "5", "--data.shuffle_buffer", "16", "--trainer.max_steps", "15"]
    words += ["--trainer.check_val_every_n_epoch", "1"]
    two = run_on_two("stream-two", *words, "--config", "ddp.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--trainer.default_root_dir", "one", "--trainer.enable_progress_bar", "false"]) == 0
    alone, together = weights(tmp_path / "one/export"), weights(two / "export")
    assert all(torch.allclose(alone[key], together[key], atol=2e-4) for key in alone)
    for first, second in zip(numbers(tmp_path / "one"), numbers(two), strict=True):
        assert first == pytest.approx(second, rel=2e-3, abs=1e-4)

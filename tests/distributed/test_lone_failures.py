"""An error of one process alone ends both: no collective function of the one meets another of the other."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.guarded import python_path

pytestmark = pytest.mark.distributed

SECONDS = 120
"""Two processes that take longer wait for each other."""
OWN = """
import torch.distributed as dist
from dataclasses import dataclass
from lightning.pytorch import Callback
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.errors import UserError

@dataclass
class Alone(REINFORCE):
    def __post_init__(self):
        super().__post_init__()
        self.rollouts = 0
    def prepare(self, rollout):
        self.rollouts += 1
        if self.rollouts == 3 and dist.get_rank() == 1:
            raise UserError("only here")
        return super().prepare(rollout)

class Fails(Callback):
    def __init__(self, hook: str):
        setattr(self, hook, self.fail)
    def fail(self, trainer, *_):
        if trainer.global_step >= 2 and trainer.global_rank == 1:
            raise UserError("only here")
"""
FIT = [
    "fit",
    "--config",
    "reinforce.yaml",
    "--data.size",
    "16",
    "--data.validation_size",
    "8",
    "--data.batch_size",
    "4",
]
FIT += ["--model.iterations", "4", "--trainer.val_check_interval", "0.5", "--trainer.accelerator", "cpu"]
FIT += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.default_root_dir", "out"]


def started(rank: int, port: int, folder: Path, words: list[str]) -> subprocess.Popen[str]:
    own = {"LOCAL_RANK": rank, "RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}  # type: ignore[dict-item]
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = python_path(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_lightning", *words],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_both(folder: Path, *words: str) -> list[tuple[int, str]]:
    """The status of each process and the last line of its errors."""
    (folder / "own.py").write_text(OWN)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [started(rank, port, folder, [*FIT, *words]) for rank in range(2)]
    try:
        said = [process.communicate(timeout=SECONDS)[1] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    return [(process.returncode, text.strip().splitlines()[-1]) for process, text in zip(both, said, strict=True)]


HOOKS = ["on_train_batch_start", "on_validation_batch_start", "on_validation_end"]
LONE: list[Any] = [["--model.algorithm", "own.Alone"], *HOOKS]


@pytest.mark.parametrize("where", LONE, ids=["prepare", *HOOKS])
def test_an_error_of_one_process_ends_both_with_a_line(where: Any, tmp_path: Path) -> None:
    if isinstance(where, str):
        (tmp_path / "fails.yaml").write_text(
            f"trainer:\n  callbacks:\n  - class_path: own.Fails\n    init_args: {{hook: {where}}}\n"
        )
        where = ["--config", "fails.yaml"]
    (other, line_of_other), (failed, line) = run_both(tmp_path, *where)
    assert (failed, line) == (2, "error: only here")
    assert other == 2
    assert re.search("another process of this run has ended.* resume with --ckpt_path last", line_of_other)
    kept = sorted((tmp_path / "out/checkpoints").glob("step-*.ckpt"))
    assert all(torch.load(path, weights_only=True)["global_step"] > 0 for path in kept)  # none is half


REWARD = """
import torch.distributed as dist
from pathlib import Path
calls = []
def judge(responses):
    calls.append(responses)
    if dist.get_rank() == 1 and len(calls) == 6:
        raise ConnectionError("the server is gone")
    return [float(len(response)) for response in responses]
"""


def test_a_reward_that_fails_on_one_process_in_a_validation_leaves_a_checkpoint_of_both(tmp_path: Path) -> None:
    """Calls: two for held-out rows before the first step, two rollouts, two for held-out rows."""
    (tmp_path / "reward.py").write_text(REWARD)
    words = ["--model.reward", "FunctionReward", "--model.reward.function", "reward.judge"]
    (other, line_of_other), (failed, line) = run_both(tmp_path, *words)
    assert (other, failed) == (2, 2)
    assert "the server is gone" in line
    assert line_of_other == "error: another rank of this run failed; read the message of that rank"
    checkpoint = torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert len(checkpoint["ranks"]) == 2

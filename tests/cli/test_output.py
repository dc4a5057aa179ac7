"""Help of single classes, and output that is piped into a program that has read enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.__main__ import main
from tests.guarded import python_path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(Path(__file__).parents[2])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.help", "PolicyStage"], ["iterations ITERATIONS", "rollouts per Lightning epoch"]),
        (["--data.help", "PreferenceData"], ["batch_size BATCH_SIZE", "validation_fraction"]),
        (["--trainer.callbacks.help", "WinRate"], ["--trainer.callbacks.against AGAINST", "the folder of an export"]),
        (
            ["--config", "ppo.yaml", "--model.algorithm.help", "PPO"],
            ["clip_range CLIP_RANGE", "the ratio is clipped to"],
        ),
        (["--config", "ppo.yaml", "--model.algorithm.help=PPO"], ["clip_range CLIP_RANGE"]),
        (["--model.algorithm.help", "PPO"], ["clip_range CLIP_RANGE", "the ratio is clipped to"]),
        (["--model.algorithm.help=DPO"], ["beta BETA"]),
        (["--model.reward.help", "LengthReward"], ["penalty PENALTY"]),
        (["--model.lr_scheduler.help", "WarmupCosine"], ["warmup_ratio WARMUP_RATIO"]),
    ],
)
def test_help_of_a_class_has_its_fields(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *words]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    shown = " ".join(said.out.split())
    assert all(text in shown for text in expected), shown
    assert not Path("runs").exists()


def test_a_reader_that_has_read_enough() -> None:
    command = f"{sys.executable} -m rlhf_lightning --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


def test_a_closed_pipe_has_the_status_of_its_signal() -> None:
    code = "import sys; from rlhf_lightning.cli import main as m; m.help_text = lambda: 'x' * 10**6; sys.exit(m.main(['--help']))"
    command = f'{sys.executable} -c "{code}" | head -c 10; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("x" * 10, "", 141)

"""Evaluations in whole runs: their metrics, their failures, and the callbacks that monitor them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_cases import FAILING, WORKING, write
from leavings import ROLLOUTS, SMALL, column, lines, metrics

from rlhf_lightning.__main__ import main

PPO = ["--config", "ppo.yaml", *SMALL, *ROLLOUTS]
MONITORS = """
    - class_path: EarlyStopping
      init_args: {monitor: val/sometimes, mode: max, patience: 1}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/sometimes, mode: max, dirpath: best, filename: best}
"""


def test_every_failure_costs_a_line_and_nothing_else(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = metrics(run("plain", "fit", *PPO))
    capsys.readouterr()
    folder = run("out", "fit", *PPO, "--config", write(tmp_path, *FAILING, *WORKING, more=MONITORS))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation ")]
    assert len(said) == 3 * len(FAILING) - 1
    assert {line.split()[1] for line in said} == set(FAILING)
    assert any("KeyError: 'no such column'" in line and "cases.py:" in line for line in said)
    own = {"val/slept", "val/greedy/gap", "val/greedy/count", "val/falls", "val/rollouts", "val/sometimes"}
    measured = metrics(folder)
    assert [{name: value for name, value in row.items() if name not in own} for row in measured] == plain
    assert column(folder, "val/falls") == [0, -8, -16]
    assert column(folder, "val/rollouts") == [0, 1, 2]
    assert column(folder, "val/greedy/count") == [16, 16, 16]
    assert max(column(folder, "val/greedy/gap")) < 1e-5
    assert column(folder, "val/sometimes") == [0.5]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val/falls"] == {"before": 0.0, "after": -16.0}
    assert summary["val/sometimes"]["after"] is None
    assert (tmp_path / "best" / "best.ckpt").is_file()
    table = lines(folder / "tables" / "greedy.jsonl")
    assert [row["step"] for row in table] == [0] * 16 + [8] * 16 + [16] * 16
    samples = lines(folder / "samples.jsonl")
    assert not [sample for sample in samples if sample["response"] == "changed"]


def test_early_stopping_and_checkpoints_read_the_metric(run: Callable[..., Path], tmp_path: Path) -> None:
    more = """
    - class_path: EarlyStopping
      init_args: {monitor: val/falls, mode: max, patience: 1}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/falls, mode: min, dirpath: best, filename: "{step}"}
"""
    config = write(tmp_path, "Falls", more=more)
    folder = run("out", "fit", *PPO, "--model.iterations", "6", "--trainer.val_check_interval", "8", "--config", config)
    assert column(folder, "val/falls") == [0, -8, -16]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["step=16.ckpt"]


def test_a_strict_evaluation_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, "Raises")
    text = (tmp_path / config).read_text().replace("cases.Raises", "cases.Raises\n      init_args: {strict: true}")
    (tmp_path / config).write_text(text)
    assert main(["fit", *PPO, "--config", config, "--trainer.enable_progress_bar", "false"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: evaluation Raises failed at step 0: KeyError")


def test_an_error_in_a_rollout_hook_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", write(tmp_path, "HookRaises"), "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *PPO, *words]) == 2
    assert "HookRaises.on_rollout_end raised KeyError: 'in the hook'" in capsys.readouterr().err


def test_state_is_resumed_and_a_checkpoint_is_measured_with_it(run: Callable[..., Path], tmp_path: Path) -> None:
    config = write(tmp_path, "Sometimes", "Hooks", more="    - class_path: WinRate\n")
    words = [
        *PPO,
        "--config",
        config,
        "--trainer.callbacks+",
        "{class_path: Checkpoints, init_args: {every_n_steps: 8}}",
    ]
    folder = run("out", "fit", *words)
    resumed = run("resumed", "fit", *words, "--ckpt_path", str(folder / "checkpoints" / "step-8.ckpt"))
    assert column(resumed, "val/win_rate")[-1] == column(folder, "val/win_rate")[-1] != 0.5
    assert column(resumed, "val/sometimes") == [0.5]  # its second call
    measured = run("measured", "validate", *words, "--ckpt_path", str(folder / "checkpoints" / "step-16.ckpt"))
    assert column(measured, "val/win_rate") == column(folder, "val/win_rate")[-1:]
    tested = run("tested", "test", *words, "--ckpt_path", str(folder / "checkpoints" / "step-16.ckpt"))
    assert column(tested, "test/win_rate")


@pytest.mark.parametrize("config", ["sft.yaml", "reward.yaml"])
def test_other_stages_run_them_too(config: str, run: Callable[..., Path], tmp_path: Path) -> None:
    words = ["--config", write(tmp_path, "Falls", "Random"), "--trainer.max_epochs", "1"]
    folder = run("out", "fit", "--config", config, *SMALL, *words)
    assert column(folder, "val/falls")[0] == 0


def test_an_evaluation_takes_none_of_the_random_numbers_of_the_run(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import random\n\ndef reward(responses):\n    return [random.random() for _ in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = ["--model.reward", "FunctionReward", "--model.reward.function", "noisy.reward"]
    words = [*PPO, *reward, "--model.algorithm", "REINFORCE"]
    plain = run("plain", "fit", *words)
    evaluated = run("out", "fit", *words, "--config", write(tmp_path, "Random"))
    assert column(evaluated, "reward/mean") == column(plain, "reward/mean")

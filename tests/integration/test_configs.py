"""Every shipped config goes through the real command line and leaves what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from leavings import ROLLOUTS, SMALL, lines, metrics, weights

from rlhf_lightning.__main__ import main

OF_THE_LOOP = {"loop", "loop_reward"}
"""Read by `loop`; see tests/loop."""
CONFIGS = {
    path.stem: path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if path.stem not in OF_THE_LOOP
}
PREDICTING = {"pairs"}
"""Read by `predict`; see tests/integration/test_predicted_pairs.py."""
OVERLAYS = {name for name, path in CONFIGS.items() if "data" not in yaml.safe_load(path.read_text())}
PARALLEL = {"ddp", "fsdp"}
"""Run by tests/distributed."""

STEP = {"loss/policy", "optimizer/grad_norm", "memory/peak"}
ONLINE = STEP | {
    *("reward/mean", "reward/std", "kl/reference", "kl/update", "policy/entropy", "reference/gap"),
    *("response/length", "response/truncated", "time/generate", "time/score", "time/update"),
    *("throughput/tokens_per_second", "val/reward/mean", "val/reward/true", "val/kl/reference", "val/response/length"),
}
OF_A_REWARD = {"reward/mean", "reward/std", "val/reward/mean", "reference/gap"}
CLIPPED = ONLINE | {"policy/clip_fraction", "policy/ratio_max"}
PAIRS = {"preference/accuracy", "preference/margin"}
PPO = CLIPPED | {"loss/value", "value/explained_variance"}
EXPECTED = {
    "ppo": PPO,
    "lora": PPO,
    "qlora": PPO,
    "grpo": CLIPPED,
    "distillation": (CLIPPED | {"val/reward/true"}) - OF_A_REWARD,
    "dapo": CLIPPED | {"rollout/prompts", "rollout/requests", "rollout/responses"},
    "gdpo": CLIPPED | {"reward/learned", "reward/short"},
    "reinforce": ONLINE,
    "dpo": ONLINE | PAIRS,
    "dpo_offline": STEP | PAIRS | {"kl/reference", "val/reward/true", "val/preference/accuracy"},
    "kto": STEP
    | {"kl/mismatched", "implicit_reward/good", "implicit_reward/bad", "kl/reference"}
    | {"val/reward/true", "val/label/accuracy"},
    "reward": STEP | PAIRS | {"val/loss/policy", "val/preference/accuracy", "val/preference/calibration_error"},
    "sft": STEP | {"val/loss/policy", "val/reward/true", "val/response/length"},
}


@pytest.fixture
def _curves() -> None:
    """They are drawn."""


def shrunk(name: str) -> list[str]:
    """The command line of a config, made small."""
    bases = ["ppo"] if name in OVERLAYS else []
    words = [word for config in (*bases, name) for word in ("--config", str(CONFIGS[config]))]
    if name == "sft":
        return [*words, *SMALL, "--trainer.max_epochs", "2"]
    if name in ("reward", "dpo_offline", "kto"):
        return [*words, *SMALL, "--trainer.val_check_interval", "0.5"]
    return [*words, *SMALL, *ROLLOUTS]


def test_there_are_configs_and_each_has_its_metrics_listed() -> None:
    assert {"ppo", "dpo", "sft"} <= set(CONFIGS) - OVERLAYS
    assert {"lora", "qlora"} <= OVERLAYS
    assert set(EXPECTED) == set(CONFIGS) - PARALLEL - PREDICTING


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - PARALLEL - PREDICTING))
def test_a_config_runs_and_repeats_itself(
    name: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("first", "fit", *shrunk(name))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[-1] == "run: first"

    rows = metrics(folder)
    with open(folder / "metrics.csv") as file:
        columns = file.readline().strip().split(",")
    assert EXPECTED[name] <= set(columns), EXPECTED[name] - set(columns)
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[0] == 0  # measured before the first step

    _check_files(folder)
    _check_summary(folder, rows)
    again = run("second", "fit", "--config", str(folder / "config.yaml"))
    assert metrics(again) == rows
    assert lines(again / "samples.jsonl") == lines(folder / "samples.jsonl") if name != "reward" else True


def _check_files(folder: Path) -> None:
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert weights(folder / "export")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (folder / "export").iterdir()}
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["default_root_dir"] is None


def _check_summary(folder: Path, rows: list[dict[str, str]]) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    measured = [row for row in rows if any(value and name.startswith("val/") for name, value in row.items())]
    assert summary.keys() == {name for name in rows[0] if name.startswith("val/")}
    for name, values in summary.items():
        assert values["before"] == pytest.approx(float(measured[0][name]), rel=1e-6)
        assert values["after"] == pytest.approx(float(measured[-1][name]), rel=1e-6)
    if "val/reward/true" in summary:
        assert summary["val/reward/true"]["best"] == 1.0
        samples = lines(folder / "samples.jsonl")
        assert {sample["step"] for sample in samples} == {int(row["step"]) for row in measured}
        assert {"prompt", "response", "reward/true"} <= samples[0].keys()


def test_a_run_without_a_folder_gets_one_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", "reward.yaml", *SMALL, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"]
    assert main(words) == 0
    first = capsys.readouterr().out.splitlines()
    assert main(words) == 0
    second = capsys.readouterr().out.splitlines()
    assert first[0] == first[-1] != second[0]
    assert first[0].startswith("run: runs/reward/2")
    assert (Path(first[0].removeprefix("run: ")) / "summary.json").is_file()

"""`tune` before any trial: whatever is wrong is one line, and nothing is written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning.cli import tune
from rlhf_lightning.cli.main import main

SPACE: dict[str, Any] = {
    "objective": {"metric": "val/reward/true"},
    "parameters": {"model.algorithm.kl.coef": {"low": 0.01, "high": 0.1}},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))


@pytest.mark.parametrize(
    ("parameters", "words", "expected"),
    [
        (
            {"model.algorithm.kl.coeff": {"low": 0.1, "high": 1.0}},
            "",
            "space.yaml: unknown key 'model.algorithm.kl.coeff'",
        ),
        ({"model.algorithm.epochs": {"low": -1, "high": 2}}, "", "space.yaml: model.algorithm.epochs cannot be -1: "),
        ({"model.algorithm": {"choices": ["PPO", "PPOO"]}}, "", "there is no class 'PPOO'"),
        ({"model.algorithm.epochs": {"choices": [1, "two"]}}, "", "model.algorithm.epochs cannot be two: "),
        ({}, "--model.algorithm.kl.coef 0.1", "--model.algorithm.kl.coef is given and space.yaml searches it"),
        ({}, "--model.iteration 3", "unknown key 'model.iteration'; did you mean 'iterations'?"),
        ({}, "--trainer.default_root_dir here", "tune sets it for each trial; remove it"),
        ({}, "--ckpt_path=last", "tune sets it for each trial; remove it"),
        ({}, "--config absent.yaml", "config absent.yaml is neither here"),
        ({}, "--trials 0", "--trials is 0; set it to 1 or more"),
        ({}, "--workers 0", "--workers is 0; set it to 1 or more"),
        ({}, "--space absent.yaml", "config absent.yaml is neither here"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_trial(
    parameters: dict[str, Any], words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if parameters:
        Path("space.yaml").write_text(yaml.safe_dump({**SPACE, "parameters": parameters}))
    assert main(["tune", "--config", "ppo.yaml", "--space", "space.yaml", *words.split()]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_without_optuna_there_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["tune", "--config", "ppo.yaml", "--space", "space.yaml"]) == 2
    assert "pip install 'rlhf_lightning[tune]'" in capsys.readouterr().err


def test_an_overlay_has_each_key_at_its_place() -> None:
    from rlhf_lightning.cli.reading import read
    from rlhf_lightning.tuning.space import overlay, read_space

    values = {
        "model.optimizer.lr": 0.5,
        "model.algorithm": "GRPO",
        "model.algorithm.kl.coef": 0.25,
        "data.batch_size": 8,
    }
    others = {"model.algorithm": "PPO"}
    parameters = {key: {"choices": [value, others.get(key, 1)]} for key, value in values.items()}
    space = read_space({**SPACE, "parameters": parameters}, "space.yaml")
    places = tune.checked_places(space, "space.yaml", ["fit", "--config", "ppo.yaml"], [])
    Path("best.yaml").write_text(yaml.safe_dump(overlay(places, values)))
    model = read(["fit", "--config", "ppo.yaml", "--config", "best.yaml"]).values["model"]["init_args"]
    assert model["optimizer"]["init_args"]["lr"] == 0.5
    assert model["algorithm"]["class_path"].endswith("GRPO")
    assert model["algorithm"]["init_args"]["kl"]["coef"] == 0.25

"""What a model card says of a config, its data files and the metrics."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.run.model_card import ModelCard, data_sources, licence_of, model_card

CONFIG = """model:
  class_path: rlhf_lightning.PolicyStage
  init_args:
    policy: {name_or_path: some-org/base-model}
    algorithm: {class_path: rlhf_lightning.PPO, init_args: {}}
data:
  class_path: PromptData
  init_args: {train: TRAIN, validation: some-org/prompts}
"""


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "p"}\n')
    return path


def test_a_card_has_base_data_metrics_config_and_command(train: Path) -> None:
    config = CONFIG.replace("TRAIN", str(train))
    before, after = {"val/reward/mean": 0.5, "val/only": float("nan")}, {"val/reward/mean": 0.75}
    card = model_card(config, ["fit", "--config", "my file.yaml"], before, after, 40)
    header = yaml.safe_load(card.split("---\n")[1])
    assert header == {
        "library_name": "transformers",
        "tags": ["rlhf_lightning", "PPO"],
        "base_model": "some-org/base-model",
        "datasets": ["some-org/prompts"],
    }
    assert "for 40 optimiser steps with PPO (PolicyStage), starting from `some-org/base-model`" in card
    assert "python -m rlhf_lightning fit --config 'my file.yaml'" in card
    assert f"| `{train}` | `{hashlib.sha256(train.read_bytes()).hexdigest()}` | not stated |" in card
    assert "| `some-org/prompts` |  | see its page |" in card
    assert "| `val/reward/mean` | 0.5 | 0.75 |" in card
    assert "| `val/only` |  |  |" in card
    assert config.rstrip() in card


def test_a_licence_is_read_from_the_data_card_or_the_licence_file(train: Path) -> None:
    assert licence_of(train) == "not stated"
    (train.parent / "LICENSE").write_text("\n  MIT License\n\nCopyright\n")
    assert licence_of(train) == "MIT License"
    (train.parent / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Data\n")
    assert licence_of(train) == "cc-by-4.0"
    (train.parent / "README.md").write_text("---\nlicense: [mit, : broken\n---\n")
    assert licence_of(train) == "MIT License"


def test_files_of_folders_and_lists_are_each_named_once(train: Path) -> None:
    other = train.with_name("other.jsonl")
    other.write_text("{}\n")
    data = {"init_args": {"train": [str(train), str(other)], "validation": str(train), "test": None}}
    assert [Path(name) for name, *_ in data_sources(data)] == [train, other]
    assert [Path(name) for name, *_ in data_sources({"init_args": {"train": str(train.parent)}})] == [other, train]


def test_a_run_from_python_has_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "started from Python" in model_card("", None, {}, {}, 0)
    monkeypatch.setattr(sys, "argv", ["rlhf_lightning", "fit", "--config", "ppo.yaml"])
    assert ModelCard(["fit", "--config", "/found/ppo.yaml"]).words == ["fit", "--config", "ppo.yaml"]
    monkeypatch.setattr(sys, "argv", ["notebook"])
    assert ModelCard(["fit", "--config", "/tmp/x.yaml"]).words is None


@pytest.mark.parametrize("resumed", [["--ckpt_path", "last"], ["--ckpt_path=last"], []])
def test_a_resumed_run_has_the_command_of_the_uninterrupted_one(
    resumed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", "--config", "last", *resumed, "--data.size", "8"]
    monkeypatch.setattr(sys, "argv", ["rlhf_lightning", *words])
    assert ModelCard(words).words == ["fit", "--config", "last", "--data.size", "8"]


def test_a_checkpoint_of_another_run_stays_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "--ckpt_path", "other.ckpt"]
    monkeypatch.setattr(sys, "argv", ["rlhf_lightning", *words])
    assert ModelCard(words).words == words

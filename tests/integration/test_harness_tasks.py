"""`HarnessTasks` with a task file and data of one's own, held against the harness's own command on the export."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from leavings import ROLLOUTS, SMALL, column
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.cli.main import main

QUESTIONS = [
    {"question": "name two fruits :", "choices": [" apple and pear", " hammer and saw"], "answer": 0},
    {"question": "name two tools :", "choices": [" red and green", " hammer and saw"], "answer": 1},
    {"question": "name two colors :", "choices": [" tiger and bear", " red and green"], "answer": 1},
    {"question": "name two animals :", "choices": [" tiger and bear", " apple and pear"], "answer": 0},
]
installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")


def write_task(folder: Path) -> None:
    (folder / "tasks").mkdir()
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    task: dict[str, Any] = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "words.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "tasks" / "words.yaml").write_text(yaml.safe_dump(task))


def callback(**options: Any) -> list[str]:
    spec = {"class_path": "HarnessTasks", "init_args": {"tasks": ["words"], "include_path": "tasks", **options}}
    return ["--trainer.callbacks", json.dumps([spec])]


def accuracy(export: Path) -> float:
    """Compute the accuracy by transformers alone: the choice with the highest log-probability."""
    tokenizer, model = AutoTokenizer.from_pretrained(export), AutoModelForCausalLM.from_pretrained(export).eval()
    right = 0
    for row in QUESTIONS:
        scores = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            context = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            whole = tokenizer(f"{row['question']}{choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            places = range(len(context), len(whole))
            scores.append(sum(float(logprobs[place - 1, whole[place]]) for place in places))
        right += scores.index(max(scores)) == row["answer"]
    return right / len(QUESTIONS)


@installed
def test_a_task_of_ones_own_on_the_weights_at_a_validation(run: Callable[..., Path], tmp_path: Path) -> None:
    write_task(tmp_path)
    words = ["--config", "ppo.yaml", *SMALL, *ROLLOUTS, "--model.optimizer.lr", "0.01"]
    folder = run("out", "fit", *words, *callback(every=2, strict=True))
    found = column(folder, "val/harness/words/acc")
    assert len(found) == 2  # of three validations, with the one before training
    assert found[-1] == accuracy(folder / "export")
    assert not list(folder.glob(".harness-*"))


@installed
def test_a_task_that_does_not_exist_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(tmp_path)
    words = ["fit", "--config", "ppo.yaml", *SMALL, "--trainer.default_root_dir", "out"]
    for options, expected in (
        ({"tasks": ["word"]}, "HarnessTasks.tasks has 'word', which is no task; did you mean 'words'?"),
        ({"include_path": "absent"}, "HarnessTasks.include_path is absent, which is no folder"),
    ):
        assert main([*words, *callback(**options)]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_without_the_harness_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more)
    )
    assert main(["fit", "--config", "ppo.yaml", *SMALL, "--trainer.default_root_dir", "out", *callback()]) == 2
    assert "pip install 'rlhf_lightning[harness]'" in capsys.readouterr().err

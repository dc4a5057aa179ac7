"""`show` prints rows as the model will get them, readable without colours, and loads no weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from rlhf_lightning.__main__ import main

SFT = """
model: {{class_path: SupervisedStage, init_args: {{model: {{name_or_path: {folder}}}, max_length: {length}}}}}
data: {{class_path: InstructionData, init_args: {{train: rows.jsonl, validation_fraction: 0}}}}
"""
DPO = """
model: {{class_path: PolicyStage, init_args: {{policy: {{name_or_path: {folder}}}, algorithm: DPO}}}}
data: {{class_path: PreferenceData, init_args: {{train: rows.jsonl, validation_fraction: 0}}}}
"""
U, A = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "the cat"}


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)


def write(config: str, rows: list[dict[str, Any]], **given: Any) -> None:
    Path("run.yaml").write_text(config.format(**given))
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_are_shown_with_prompt_and_what_is_learned(
    tiny_model_folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(SFT, [{"messages": [U, A, U, A], "origin": "x"}], folder=tiny_model_folder("llama"), length=512)
    assert main(["show", "--config", "run.yaml", "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert "row 1 of train (rows.jsonl:1)" in said
    assert said.count("    learned | the cat<eos>") == 2
    assert "    prompt  | user: hello\n            | assistant: \n" in said
    assert "not used: origin" in said
    assert "\033" not in said
    assert main(["show", "--config", "run.yaml", "--color", "always"]) == 0
    assert "\033[1;32mthe cat<eos>\033[0m" in capsys.readouterr().out


def test_a_pair_shows_context_and_what_is_truncated(
    tiny_model_folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": [U], "chosen": [A, U, A], "rejected": [A]}
    write(DPO, [row], folder=tiny_model_folder("llama"))
    assert main(["show", "--config", "run.yaml", "--model.max_length", "12"]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 train rows are too long and are truncated" in said
    assert "    context | \n            | user: hello"[:14] in said
    assert main(["show", "--config", "run.yaml"]) == 0
    assert "user: hello" in capsys.readouterr().out.split("context |")[1]


def test_a_bad_row_is_one_line(tiny_model_folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]) -> None:
    write(SFT, [{"messages": [U, {"role": "narrator", "content": "x"}]}], folder=tiny_model_folder("llama"), length=64)
    assert main(["show", "--config", "run.yaml"]) == 2
    assert "rows.jsonl:1: column 'messages': message 2 has the role 'narrator'" in capsys.readouterr().err
    assert main(["show", "--config", "run.yaml", "--rows", "0"]) == 2
    assert "--rows is 0" in capsys.readouterr().err

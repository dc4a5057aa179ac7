"""`compare` through the command line, on the playground's models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from judge_server import judge_server

from rlhf_lightning.cli.main import main

PROMPTS = ["can you name two fruits ?", "i need two colors and two animals .", "name one tool ."]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    pairs = [{"prompt": text, "chosen": "apple and pear .", "rejected": "a a a a a a ."} for text in PROMPTS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path


@pytest.fixture
def copy(folder: Path) -> str:
    """A second name of the playground's policy."""
    from rlhf_lightning.models.paths import resolve_path

    (folder / "copy").symlink_to(resolve_path("playground/sft"))
    return "copy"


def compare(*words: str) -> int:
    return main(["compare", *words, "--max-new-tokens", "8"])


def test_policies_by_a_reward_model(copy: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("playground/sft", copy, "--data", "prompts.jsonl", "--judge", "playground/reward") == 0
    assert "0.500" in capsys.readouterr().out  # the same model: every prompt is a tie
    html = (folder / "compare.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    samples = json.loads(data.group(1))["samples"]
    assert [row["prompt"] for row in samples["rows"]] == PROMPTS
    assert samples["rows"][0]["runs"][0] == samples["rows"][0]["runs"][1]
    assert isinstance(samples["rows"][0]["runs"][0]["after"][1][0], float)


def test_policies_by_a_judge_of_a_file(
    copy: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    words = ("playground/sft", copy, "--data", "prompts.jsonl", "--temperature", "1", "--judge", "judge.yaml")
    with judge_server(lambda text, body: "[[A]]") as server:
        arguments = f"{{url: '{server.url}', model: m, mode: pairs, cache: null}}"
        (folder / "judge.yaml").write_text(f"class_path: JudgeReward\ninit_args: {arguments}\n")
        assert compare(*words) == 0
        assert len(server.requests) == 2 * 3
    assert "both orders agree on 0%" in " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())


def test_reward_models_on_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "playground/reward", "--data", "pairs.jsonl", "-o", "rewards.html"]) == 0
    html = (folder / "rewards.html").read_text()
    assert "Reward models on 3 pairs" in html
    assert "accuracy/better_is_shorter" in html


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "playground/sft --data prompts.jsonl --judge playground/reward",
            "nothing to compare it with; pass a second one",
        ),
        ("playground/sft playground/sft --data prompts.jsonl --judge x", "two models have the same name"),
        ("playground/sft nowhere --data prompts.jsonl --judge playground/reward", "nowhere"),
        ("playground/sft copy --data prompts.jsonl --judge PlaygroundRewards", "did you mean 'PlaygroundReward'?"),
        (
            "playground/sft copy --data prompts.jsonl --judge JudgeReward",
            "put class_path and init_args into a YAML file",
        ),
        ("playground/sft copy --data prompts.jsonl --judge none.yaml", "there is no such file"),
        ("playground/sft copy --data nothing.jsonl --judge playground/reward", "nothing.jsonl"),
        ("playground/reward --data prompts.jsonl", "prompts.jsonl"),
        ("playground/sft copy --data prompts.jsonl --judge x --limit 0", "--limit is 0; set it to 1 or more"),
    ],
)
def test_wrong_words_are_one_line(words: str, expected: str, copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*words.split()) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1

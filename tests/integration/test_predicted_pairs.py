"""`predict` generates several responses, scores them and writes pairs; `fit` learns from that file in one command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from leavings import SMALL, lines, metrics

from rlhf_lightning.__main__ import main

PREDICT = ["predict", "--config", "ppo.yaml", *SMALL, "--model.predict_temperature", "1.0"]


def test_pairs_of_ones_own_are_learned_from(run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("predicted", *PREDICT, "--model.predict_responses", "4", "--model.predict_score", "true")
    predicted, pairs = lines(folder / "predictions.jsonl"), lines(folder / "preferences.jsonl")
    assert len(predicted) == 32
    assert 0 < len(pairs) <= 8
    for number, prompt in enumerate(dict.fromkeys(row["prompt"] for row in predicted)):
        own = [row for row in predicted if row["prompt"] == prompt]
        assert len({row["response"] for row in own}) > 1, number
    said = capsys.readouterr().out
    assert f"preferences.jsonl ({len(pairs)} pairs" in said
    scores = sorted(row["reward"] for row in predicted)
    assert all(scores[0] <= row["score_rejected"] < row["score_chosen"] <= scores[-1] for row in pairs)
    words = ["--data", "PreferenceData", "--data.train", str(folder / "preferences.jsonl"), "--data.batch_size", "4"]
    trained = run("trained", "fit", "--config", "dpo_offline.yaml", *words, "--data.validation_fraction", "0.25")
    assert "not used" not in capsys.readouterr().out
    last = metrics(trained)[-1]
    assert int(last["step"]) >= 2
    assert "preference/accuracy" in last


def test_truncated_sampling_and_stop_strings_from_the_command_line(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = lines(run("greedy", "predict", "--config", "ppo.yaml", *SMALL) / "predictions.jsonl")
    first = lines(run("first", *PREDICT, "--model.generation.top_k", "1") / "predictions.jsonl")
    assert [row["response"] for row in first] == [row["response"] for row in greedy]
    string = greedy[0]["response"][3:5]
    stopped = run(
        "stopped", "predict", "--config", "ppo.yaml", *SMALL, "--model.generation.stop_strings", f'["{string}"]'
    )
    assert [row["response"] for row in lines(stopped / "predictions.jsonl")] == [
        row["response"].partition(string)[0] for row in greedy
    ]
    capsys.readouterr()
    assert main(["fit", "--config", "ppo.yaml", "--model.generation.top_p", "0.9"]) != 0
    said = capsys.readouterr().err
    assert "generation has top_p 0.9; rollouts of a truncated distribution bias the gradient" in said

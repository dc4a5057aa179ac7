"""Pairs with a probability through the command line: from a file, and from what annotators exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from leavings import column, equal, weights

from rlhf_lightning.__main__ import main

TINY = ["--data.class_path", "PreferenceData", "--data.validation_fraction", "0", "--data.batch_size", "4"]
STEPS = ["--trainer.max_epochs", "2", "--trainer.val_check_interval", "null", "--trainer.limit_val_batches", "0"]
CONFIGS = {"dpo_offline": "dpo_offline.yaml", "reward": "reward.yaml"}
PAIRS = [
    {"prompt": f"say {i}", "chosen": "thank you" + "!" * i, "rejected": "no " + "dog " * (i % 3)} for i in range(12)
]


def trained(run: Callable[..., Path], name: str, rows: Sequence[dict[str, Any]], config: str) -> Path:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(name, "fit", "--config", CONFIGS[config], *TINY, "--data.train", f"{name}.jsonl", *STEPS)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_run_learns_what_the_probabilities_say(config: str, run: Callable[..., Path]) -> None:
    """One and a column of nulls are the run without them, zero that on swapped pairs, a half is another run."""
    plain = trained(run, "plain", PAIRS, config)
    runs = {
        name: trained(run, name, [{**row, "probability": p} for row in PAIRS], config)
        for name, p in {"ones": 1, "nulls": None, "halves": 0.5}.items()
    }
    exchanged = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "probability": 0.0} for row in PAIRS]
    runs["swapped"] = trained(run, "swapped", exchanged, config)
    wanted = weights(plain / "export")
    assert {name for name, folder in runs.items() if equal(weights(folder / "export"), wanted)} == {
        "ones",
        "nulls",
        "swapped",
    }
    assert column(plain, "preference/margin")[-1] > 0
    margins = column(runs["halves"], "preference/margin"), column(plain, "preference/margin")
    assert abs(margins[0][-1]) < abs(margins[1][-1])  # pulled together, not apart
    assert not column(runs["halves"], "preference/accuracy")  # unknown: no pair has a better response


@pytest.mark.parametrize("config", CONFIGS)
def test_a_run_of_soft_labels_resumes_bit_by_bit(config: str, run: Callable[..., Path]) -> None:
    rows = [{**row, "probability": 0.5 + 0.04 * i} for i, row in enumerate(PAIRS)]
    whole = trained(run, "whole", rows, config)
    words = ["fit", "--config", CONFIGS[config], *TINY, "--data.train", "whole.jsonl", *STEPS]
    run("stopped", *words, "--trainer.max_steps", "2")
    resumed = run("stopped", *words, "--ckpt_path", "last")
    assert equal(weights(resumed / "export"), weights(whole / "export"))


@pytest.mark.parametrize(
    ("value", "found"), [(1.2, "found 1.2"), (-0.1, "found -0.1"), ("often", "found 'often'"), (float("nan"), "nan")]
)
def test_a_probability_that_is_none_names_file_line_and_column(
    value: Any, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*PAIRS[:2], {**PAIRS[2], "probability": value}]
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["fit", "--config", "dpo_offline.yaml", *TINY, "--data.train", "bad.jsonl"]
    assert main([*words, "--trainer.default_root_dir", "out"]) == 2
    said = capsys.readouterr().err
    assert "bad.jsonl:3: column 'probability' must be a number" in said
    assert found in said


@pytest.mark.parametrize("config", CONFIGS)
def test_held_out_accuracy_is_of_the_pairs_with_a_better_response(config: str, run: Callable[..., Path]) -> None:
    rows = [{**row, "probability": 0.5 if i % 2 else 0.8} for i, row in enumerate(PAIRS)]
    found = {}
    for name, held_out in {"all": rows, "decided": rows[0::2], "ties": rows[1::2]}.items():
        for file, given in {"train": rows, name: held_out}.items():
            Path(f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        files = [*TINY, "--data.train", "train.jsonl", "--data.validation", f"{name}.jsonl"]
        epochs = ["--trainer.max_epochs", "1", "--trainer.val_check_interval", "1.0"]
        folder = run(name, "fit", "--config", CONFIGS[config], *files, *epochs)
        found[name] = column(folder, "val/preference/accuracy")
    assert found["all"] == pytest.approx(found["decided"])
    assert not found["ties"]

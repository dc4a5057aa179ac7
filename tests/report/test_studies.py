"""A report about a search: its trials, best first, importances, and the best runs as runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import PROMPTS, config, metrics_of, sample, write_run

from rlhf_lightning.cli.main import main
from rlhf_lightning.report.studies import RUNS_SHOWN, expand_studies

LR = "model.optimizer.lr"


def trial(number: int, value: float | None, kl: float, state: str = "complete") -> dict[str, Any]:
    return {
        "number": number,
        "state": state,
        "value": value,
        "kl": kl,
        "within_limit": kl <= 0.5,
        "params": {LR: 0.001 * (number + 1), "model.algorithm": "<b>PPO"},
        "folder": f"trials/{number:04d}",
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    trials = [trial(0, 0.6, 0.1), trial(1, 0.9, 0.7), trial(2, 0.8, 0.2), trial(3, None, 0.0, "failed")]
    for each in trials[:3]:
        write_run(folder / each["folder"], config(seed=each["number"]), [sample(0, PROMPTS[0], "a", 0.5)], metrics_of())
    content = {"metric": "val/reward/true", "kl_metric": "val/kl/reference", "kl_limit": 0.5, "direction": "maximize"}
    content |= {"best": 2, "importances": {"model.algorithm": 0.25, LR: 0.75}, "trials": trials}
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def test_trials_within_the_limit_come_first_and_then_by_value(study: Path) -> None:
    (folder, *_), (found,) = expand_studies([study])
    assert [row[0] for row in found.rows] == ["2 (best)", "0", "1", "3"]
    assert [row[1] for row in found.rows] == ["complete", "complete", "beyond the KL limit", "failed"]
    assert folder == study / "trials/0002"
    assert list(found.importances) == [LR, "model.algorithm"]
    assert len(found.runs) == 3 <= RUNS_SHOWN


def test_the_page_and_the_markdown_show_a_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Objective: val/reward/true with val/kl/reference up to 0.5" in page
    assert page.index("2 (best)") < page.index("beyond the KL limit")
    assert "&lt;b&gt;PPO" in page
    assert "<b>PPO" not in page.partition('<script type="application/json"')[0]
    capsys.readouterr()
    assert main(["report", str(study), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "### Tuning" in text
    assert f"| {LR} | 0.75 |" in text


def test_a_study_without_a_complete_trial_is_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps({**content, "trials": content["trials"][3:], "best": None}))
    assert main(["report", str(study)]) == 2
    assert "has no complete trial; run tune again" in capsys.readouterr().err

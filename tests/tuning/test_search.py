"""A search over runs of a tenth of a second: results, pruning, failures, kills, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tuning_runs
import yaml
from tuning_runs import PLACES, SPACE, command_of_tests

from rlhf_lightning.errors import UserError
from rlhf_lightning.tuning import search as search_module
from rlhf_lightning.tuning import study as study_module
from rlhf_lightning.tuning.search import Search, SearchOptions
from rlhf_lightning.tuning.space import overlay, read_space
from rlhf_lightning.tuning.study import FEWEST_FOR_IMPORTANCES, Study
from rlhf_lightning.tuning.trial_run import TrialRun

optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_module, "SECONDS_BETWEEN_POLLS", 0.02)
    monkeypatch.setattr(search_module, "SECONDS_BETWEEN_CLAIMS", 0.1)
    monkeypatch.setattr(TrialRun, "command", property(command_of_tests))


def study_of(trials: int, space: dict[str, Any] = SPACE, config: Any = None, **options: Any) -> Study:
    return Study(
        Path("study"), read_space(space, "space.yaml"), lambda v: overlay(PLACES, v), config or {}, trials, **options
    )


def states(study: Study) -> Counter[str]:
    return Counter(row["state"] for row in study.rows())


def test_the_best_trial_is_within_the_limit_and_its_overlay_holds_its_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = study_of(FEWEST_FOR_IMPORTANCES, pruning=False)
    Search(study, SearchOptions([], workers=2)).run()
    rows = study.rows()
    assert states(study) == {"complete": FEWEST_FOR_IMPORTANCES}
    assert all(row["value"] == row["params"]["model.lr"] for row in rows)
    assert all(row["kl"] == 2 * row["value"] for row in rows)
    assert any(row["kl"] > 1 for row in rows)
    best = max((row for row in rows if row["kl"] <= 1.0), key=lambda row: row["value"])
    assert study.best() == best
    assert study.optuna.best_trial.number == best["number"]  # the sampler has the limit as a constraint
    assert yaml.safe_load(Path("study/best.yaml").read_text()) == {
        "model": {"lr": best["params"]["model.lr"], "mode": best["params"]["model.mode"]}
    }
    ranked = study.ranked()
    assert [row["within_limit"] for row in ranked] == sorted((row["within_limit"] for row in rows), reverse=True)
    content = json.loads(Path("study/study.json").read_text())
    assert content["best"] == best["number"]
    assert content["importances"].keys() == PLACES.keys()
    assert sum(content["importances"].values()) == pytest.approx(1)
    assert content["importances"]["model.lr"] > 0.5  # the mode changes nothing
    assert not Path("study/trials/0000/checkpoints").exists()
    assert "beyond the limit" in capsys.readouterr().out


class WatchedRun:
    """A run in progress with these validations: metric and KL divergence."""

    def __init__(self, study: Study, validations: list[tuple[float, float]]) -> None:
        claimed = study.claim()
        assert claimed is not None
        self.claimed, self.folder, self.killed = claimed, Path("none"), False
        self.reported: set[int] = set()
        self.seen = validations

    def validations(self) -> list[tuple[float, float]]:
        return self.seen

    def kill(self) -> None:
        self.killed = True


def test_a_trial_below_the_median_is_pruned_and_one_beyond_the_limit_prunes_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study_module, "STARTUP_TRIALS", 1)
    study = study_of(6)
    search: Any = Search(study, SearchOptions([]))
    high = WatchedRun(study, [(0.2, 0.5), (0.4, 0.9), (9.0, 1.1)])  # the last one beyond the limit of 1
    assert not search._prune(high)
    study.end(high.claimed, "COMPLETE", 9.0, 1.1)
    early = WatchedRun(study, [(0.1, 0.1)])
    assert not search._prune(early)  # one validation is too early
    early.seen = [(0.1, 0.1), (0.3, 0.1)]
    assert search._prune(early)
    assert early.killed
    better = WatchedRun(study, [(0.1, 0.1), (0.5, 0.1), (0.5, 0.1)])
    assert not search._prune(better)
    assert [row["state"] for row in study.rows()] == ["complete", "pruned", "running"]
    assert study.rows()[1]["kl"] == 0.1
    never = study_of(6, pruning=False)
    last: Any = Search(never, SearchOptions([]))
    assert not last._prune(WatchedRun(never, [(0.0, 0.1)] * 4))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("fails", "lr is wrong; set lr to another value"), ("nan", "val/reward/true is not finite")],
)
def test_failed_trials_are_repeated_until_too_many_have_failed(
    mode: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(2)
    with pytest.raises(UserError, match=r"2 trials have failed") as raised:
        Search(study, SearchOptions([], ["--mode", mode], max_failures=2)).run()
    assert expected in str(raised.value)
    assert "trial 0 failed" in capsys.readouterr().out
    assert states(study) == {"fail": 2}
    Search(study_of(2), SearchOptions([])).run()
    assert states(study) == {"fail": 2, "complete": 2}


def test_a_metric_that_no_validation_has_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS_PER_VALIDATION", "0.5")
    study = study_of(3)
    with pytest.raises(UserError, match="no validation measures 'val/reward/true'") as raised:
        Search(study, SearchOptions([], ["--mode", "other"])).run()
    assert "remove study or set --output to another folder, and fix the name: " in str(raised.value)
    assert not Path("study/trials/0000/summary.json").exists()  # found at the first validation, not at the end


def test_a_run_that_is_killed_resumes_from_its_checkpoint() -> None:
    study = study_of(1)
    Search(study, SearchOptions([], ["--mode", "killed"], max_failures=1)).run()
    assert states(study) == {"complete": 1}
    assert Path("study/trials/0000/starts").read_text() == "2\n"


def test_a_folder_has_one_study() -> None:
    study_of(1, config={"a": 1})
    study_of(2, config={"a": 1})
    with pytest.raises(UserError, match="another config; remove it, or set --output to another folder"):
        study_of(1, config={"a": 2})
    with pytest.raises(UserError, match="another objective"):
        study_of(1, {**SPACE, "objective": {"metric": "val/x"}}, config={"a": 1})


def test_trials_of_other_processes_are_counted_and_not_taken() -> None:
    one, two = study_of(2), study_of(2)
    first, second = one.claim(), two.claim()
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (0, 1)
    assert one.claim() is None
    os.close(second.lock)  # as if its process had been killed
    again = one.claim()
    assert again is not None
    assert again.number == 1
    assert again.trial.params == second.trial.params
    one.end(first, "COMPLETE", 0.1, 0.2)
    assert one.has_open()


def test_a_resumed_study_does_not_repeat_its_first_values() -> None:
    first = study_of(2).claim()
    assert first is not None
    second = study_of(2).claim()
    assert second is not None
    assert second.number == 1
    assert second.trial.params["model.lr"] != first.trial.params["model.lr"]


def test_a_search_that_is_killed_twice_ends_with_as_many_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECONDS_PER_VALIDATION", "0.3")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    words = [sys.executable, tuning_runs.__file__, "search", "study", "4", "2"]
    killed = 0
    for _ in range(2):
        process = subprocess.Popen(words)
        started = len(list(Path("study").glob("trials/*.yaml")))
        end = time.monotonic() + 60
        while len(list(Path("study").glob("trials/*/metrics.csv"))) <= started and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 2
    assert subprocess.run(words, check=False, timeout=120).returncode == 0
    study = study_of(4)
    assert sum(states(study)[state] for state in ("complete", "pruned")) == 4
    assert states(study)["running"] == 0
    assert set(states(study)) <= {
        "complete",
        "pruned",
        "fail",
    }  # a kill between two values fails a trial that has not run
    complete = [row for row in study.rows() if row["state"] == "complete"]
    assert all(row["value"] == pytest.approx(row["params"]["model.lr"]) for row in complete)
    assert json.loads(Path("study/study.json").read_text())["target"] == 4

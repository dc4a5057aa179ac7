"""`tune` with real runs: killed twice, resumed, and its best trial repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from leavings import ROLLOUTS, SMALL, differing

from tests.guarded import python_path

pytestmark = pytest.mark.slow
TRIALS = 3
FIT = ["--config", "ppo.yaml", *SMALL, *ROLLOUTS]
SPACE = {
    "objective": {"metric": "val/reward/true", "kl_limit": 100.0},
    "parameters": {"model.optimizer.lr": {"low": 1.0e-5, "high": 1.0e-3, "log": True}},
}


def _start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    monkeypatch.setenv("PYTHONPATH", python_path(Path(__file__).parents[2]))
    words = ["tune", *FIT, "--space", "space.yaml", "--trials", str(TRIALS), "-o", "study", "--no-pruning"]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen([sys.executable, "-m", "rlhf_lightning", *words], stdout=said, stderr=said)


def test_a_search_that_is_killed_twice_resumes_and_its_best_trial_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    trials = tmp_path / "study" / "trials"
    for number in range(2):  # trial 0 is killed before its end, then trial 1
        search, end = _start(tmp_path, monkeypatch), time.monotonic() + 900
        try:
            while not (trials / f"{number:04d}" / "metrics.csv").exists():
                assert search.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
        finally:
            search.send_signal(signal.SIGKILL)
            status = search.wait()
        assert status == -signal.SIGKILL
    assert _start(tmp_path, monkeypatch).wait(1800) == 0, (tmp_path / "said").read_text()
    content = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [row["state"] for row in content["trials"]] == ["complete"] * TRIALS
    for row in content["trials"]:
        summary = json.loads((tmp_path / "study" / row["folder"] / "summary.json").read_text())
        assert row["value"] == summary["val/reward/true"]["after"]
    best = max(content["trials"], key=lambda row: row["value"])
    assert content["best"] == best["number"]
    again = [sys.executable, "-m", "rlhf_lightning", "fit", *FIT, "--config", "study/best.yaml"]
    subprocess.run([*again, "--trainer.default_root_dir", "again"], check=True, stdout=subprocess.DEVNULL)
    assert differing(tmp_path / "again", tmp_path / "study" / best["folder"]) == []

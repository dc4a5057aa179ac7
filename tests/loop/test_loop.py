"""The loop from end to end: its tree, interruptions, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from leavings import equal, lines, weights

pytest.importorskip("starlette")

from rlhf_lightning.__main__ import main
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.loop import judging, simulated
from rlhf_lightning.loop.tree import Tree

STEPS = (
    "ask.json",
    "held_out.jsonl",
    "labels.jsonl",
    "reward.yaml",
    "reward",
    "policy.yaml",
    "policy",
    "measured.json",
)
ROUNDS = ("round-00", "round-01")


def loop(*words: str) -> int:
    return main(["loop", "--config", "loop.yaml", *words])


def leavings(folder: Path) -> dict[str, Any]:
    """What a kill must not change."""
    return {
        **{f"{name}/labels": lines(folder / name / "labels.jsonl") for name in ROUNDS},
        **{f"{name}/held_out": lines(folder / name / "held_out.jsonl") for name in ROUNDS},
    }


@pytest.fixture
def whole(tiny: Path, in_process: list[list[str]]) -> Path:
    """The folder of a loop that nobody interrupted."""
    assert loop() == 0
    return (tiny / "loop").rename(tiny / "whole")


def test_the_tree_is_ordinary_runs_and_a_second_call_does_nothing(
    tiny: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert loop() == 0
    for name in ROUNDS:
        assert {path.name for path in (tiny / "loop" / name).iterdir()} == set(STEPS)
    first, second = (yaml.safe_load(Path(f"loop/{name}/reward.yaml").read_text()) for name in ROUNDS)
    assert first.keys() == {"seed_everything", "data"}
    assert second["model"] == {"init_args": {"model": {"name_or_path": "loop/round-00/reward/export"}}}
    assert second["data"]["init_args"] == {
        "train": "loop/round-01/labels.jsonl",
        "validation": "loop/round-01/held_out.jsonl",
    }
    policy = yaml.safe_load(Path("loop/round-01/policy.yaml").read_text())
    assert policy["model"] == {"init_args": {"reward": {"init_args": {"name_or_path": "loop/round-01/reward/export"}}}}
    assert json.loads(Path("loop/round-01/ask.json").read_text())["model"] == "loop/round-00/policy/export"
    both = [lines(Path(f"loop/{name}/{file}")) for name in ROUNDS for file in ("labels.jsonl", "held_out.jsonl")]
    assert [len(rows) for rows in both] == [8, 2, 16, 4]
    assert both[2][:8] == both[0]  # sorted by round, and the labels of a round stay
    assert {row["prompt"] for row in both[3]}.isdisjoint(row["prompt"] for row in both[2])
    measured = Tree(Path("loop")).measured()
    assert [row["judgements"] for row in measured] == [30, 60]
    assert 0 < measured[1]["policy"]["val/reward/true"] < 1
    assert 0 <= measured[1]["reward"]["val/preference/accuracy"] <= 1
    runs = len(in_process)
    assert runs == 4
    assert loop() == 0
    assert len(in_process) == runs
    assert "all 2 rounds are done" in capsys.readouterr().out
    assert loop("--labels", "11") == 2
    assert "labels is 11, and the loop in loop has 10" in capsys.readouterr().err


def test_an_interruption_at_any_step_changes_nothing(
    whole: Path, tiny: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the calls is interrupted: after some judgements, while a batch is chosen, and between the files."""
    judge, count = simulated.Page.judge, 0

    def interrupted(page: simulated.Page) -> bool:
        nonlocal count
        count += 1
        if count in (3, 4, 12, 50):
            raise KeyboardInterrupt
        return judge(page)

    monkeypatch.setattr(simulated.Page, "judge", interrupted)
    statuses = []
    while (status := loop()) and len(statuses) < 10:
        statuses.append(status)
    assert statuses == [130] * 4
    assert leavings(tiny / "loop") == leavings(whole)
    for name in ROUNDS:
        for stage in ("reward", "policy"):
            assert equal(weights(whole / name / stage / "export"), weights(tiny / "loop" / name / stage / "export"))


def test_a_metric_that_does_not_rise_ends_the_loop(
    tiny: Path, in_process: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert loop("--rounds", "9", "--monitor", "policy/val/response/truncated", "--rounds_without_gain", "1") == 0
    said = capsys.readouterr().out
    found = re.search(r"loop: policy/val/response/truncated has had no new best value for 1 rounds", said)
    assert found or "all 9 rounds" in said
    assert len(Tree(Path("loop")).measured()) < 9
    assert loop("--monitor", "policy/val/reward/tru") == 2
    assert "did you mean 'policy/val/reward/true'?" in capsys.readouterr().err


def test_iterated_policies_start_at_the_last_one(tiny: Path, in_process: list[list[str]]) -> None:
    assert loop("--policy_start", "last", "--reward_start", "sft", "--held_out", "0") == 0
    overlay = yaml.safe_load(Path("loop/round-01/policy.yaml").read_text())
    assert overlay["model"]["init_args"]["policy"] == {"name_or_path": "loop/round-00/policy/export"}
    overlay = yaml.safe_load(Path("loop/round-01/reward.yaml").read_text())
    assert "model" not in overlay
    assert overlay["data"] == {"init_args": {"train": "loop/round-01/labels.jsonl"}}
    assert not Path("loop/round-00/held_out.jsonl").exists()


def test_people_judge_on_the_page(
    tiny: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people open their links and judge; the loop waits for both."""
    monkeypatch.setattr(judging, "POLL_SECONDS", 0.05)

    def people() -> None:
        while not (found := re.search(r"judge at (http://\S+)/ ;", "".join(said))):
            time.sleep(0.05)
            said.append(capsys.readouterr().out)
        with Store("loop/feedback.db") as store:
            pages = [simulated.Page(found[1], store.invite(name), simulated.ANNOTATORS[0], 0) for name in ("Ada", "Bo")]
        while len(Tree(Path("loop")).measured()) < 1:
            try:
                if not [page.judge() for page in pages].count(True):
                    time.sleep(0.05)
            except OSError:  # the page is closed between rounds
                time.sleep(0.05)

    said: list[str] = []
    thread = threading.Thread(target=people, daemon=True)
    thread.start()
    assert (
        loop("--annotators", "people", "--port", "0", "--rounds", "1", "--labels", "6", "--judgements_per_item", "2")
        == 0
    )
    thread.join(10)
    rows = lines(Path("loop/round-00/labels.jsonl")) + lines(Path("loop/round-00/held_out.jsonl"))
    assert len(rows) == 6
    assert all(len(set(row["annotators"])) == 2 for row in rows)


@pytest.mark.parametrize(
    ("words", "essentials"),
    [
        (["--labls", "3"], ["labls", "did you mean 'labels'?"]),
        (["--labels", "0"], ["labels is 0", "set it to at least 1"]),
        (["--labels", "x"], ["labels", "found 'x'"]),
        (["--responses", "1"], ["responses is 1", "at least 2"]),
        (["--prompts_per_round", "3"], ["prompts_per_round is 3", "set prompts_per_round to 10"]),
        (["--held_out", "1"], ["held_out is 1", "below 1"]),
        (["--random_share", "2"], ["random_share is 2"]),
        (["--strategy", "margn"], ["margn", "did you mean 'margin'?"]),
        (["--annotators", "robots"], ["annotators", "'robots'"]),
        (["--judgements_per_item", "6"], ["judgements_per_item is 6", "5 simulated annotators"]),
        (["--port", "70000"], ["port is 70000"]),
        (["--reward", "rewrd.yaml"], ["config rewrd.yaml", "did you mean 'reward.yaml'?"]),
        (["--reward", "reward.yaml"], ["data is PlaygroundPreferences", "set data.class_path to PreferenceData"]),
        (["--policy", "dpo_offline.yaml"], ["model.reward is None", "ModelReward"]),
        (["--policy", '["ppo.yaml", "bad.yaml"]'], ["iteration", "did you mean 'iterations'?"]),
        (["--prompts", "none.jsonl"], ["none.jsonl"]),
        (["--prompts_per_round", "100"], ["64 different prompts", "takes 100"]),
        (["--reward", "[]"], ["reward names no config"]),
    ],
)
def test_a_bad_config_is_one_line_before_anything_starts(
    words: list[str], essentials: list[str], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny / "bad.yaml").write_text("model: {init_args: {iteration: 3}}\n")
    assert loop(*words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert all(essential in said[0] for essential in essentials), said[0]
    assert not (tiny / "loop").exists()


def test_two_loops_of_one_folder_are_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tree(tiny / "loop").locked():
        assert loop() == 2
    assert "another process runs the loop in loop" in capsys.readouterr().err


def start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rlhf_lightning", "loop", "--config", "loop.yaml"]
    with open("log.txt", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for(pattern: str) -> None:
    end = time.monotonic() + 200
    while not list(Path("loop").glob(pattern)):
        assert time.monotonic() < end, Path("log.txt").read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_kill_and_an_interruption_change_nothing(whole: Path, tiny: Path) -> None:
    process = start()
    wait_for("round-00/policy/checkpoints/*.ckpt")
    process.kill()  # its run lives on, and the next call waits for it
    process.wait()
    process = start()
    wait_for("round-01/reward/checkpoints/*.ckpt")
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, Path("log.txt").read_text()
    assert start().wait(300) == 0, Path("log.txt").read_text()
    assert leavings(tiny / "loop") == leavings(whole)
    for name in ROUNDS:
        export = os.path.join(name, "policy", "export")
        assert equal(weights(whole / export), weights(tiny / "loop" / export))

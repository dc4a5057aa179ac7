"""The loop from end to end: its tree, interruptions, and what is refused before anything starts."""

from __future__ import annotations

import json
import os
import re
import shutil
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
from loop_cases import stay_in_process, write_configs

pytest.importorskip("starlette")

from rlhf_lightning.__main__ import main
from rlhf_lightning.feedback.questions import strategy_of
from rlhf_lightning.feedback.rank import key_of, pair_of
from rlhf_lightning.feedback.store import Store
from rlhf_lightning.loop import judging, runs, simulated, steps
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a loop that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_configs(folder)
        stay_in_process(patch)
        assert loop() == 0
    return folder / "loop"


def test_the_tree_is_ordinary_runs(whole: Path) -> None:
    for name in ROUNDS:
        assert {path.name for path in (whole / name).iterdir()} == set(STEPS)
    first, second = (yaml.safe_load((whole / name / "reward.yaml").read_text()) for name in ROUNDS)
    assert first.keys() == {"seed_everything", "data"}
    assert second["model"] == {"init_args": {"model": {"name_or_path": "loop/round-00/reward/export"}}}
    assert second["data"]["init_args"] == {
        "train": "loop/round-01/labels.jsonl",
        "validation": "loop/round-01/held_out.jsonl",
    }
    policy = yaml.safe_load((whole / "round-01/policy.yaml").read_text())
    assert policy["model"] == {"init_args": {"reward": {"init_args": {"name_or_path": "loop/round-01/reward/export"}}}}
    used = yaml.safe_load((whole / "round-01/policy/config.yaml").read_text())
    assert used["model"]["init_args"]["reward"]["init_args"]["name_or_path"] == "loop/round-01/reward/export"
    assert json.loads((whole / "round-01/ask.json").read_text())["model"] == "loop/round-00/policy/export"


def test_labels_are_frozen_sorted_and_never_held_out_and_learned(whole: Path) -> None:
    both = [lines(whole / name / file) for name in ROUNDS for file in ("labels.jsonl", "held_out.jsonl")]
    assert [len(rows) for rows in both] == [8, 2, 16, 4]
    assert both[2][:8] == both[0]  # sorted by round, and the labels of a round stay
    assert {row["prompt"] for row in both[3]}.isdisjoint(row["prompt"] for row in both[2])


def test_measurements_and_the_page(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Tree(whole).measured()
    assert [row["judgements"] for row in measured] == [30, 60]
    assert 0 < measured[1]["policy"]["val/reward/true"] < 1
    assert 0 <= measured[1]["reward"]["val/preference/accuracy"] <= 1
    assert all(row["name"] is None for row in measured[1]["annotators"])
    page = (whole / "loop.html").read_text()
    assert page.count("<svg") >= 5  # accuracy, agreement, rewards, annotators
    monkeypatch.chdir(whole.parent)
    (whole / "loop.html").unlink()
    assert main(["loop", "--status"]) == 0
    assert (whole / "loop.html").read_text() == page
    assert "2 rounds are done; the next step is candidates of round 2." in capsys.readouterr().out


def test_a_loop_that_is_done_does_nothing_and_refuses_other_options(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole.parent)
    started = stay_in_process(monkeypatch)
    assert loop() == 0
    assert "all 2 rounds are done" in capsys.readouterr().out
    assert started == []
    assert loop("--labels", "11") == 2
    assert "labels is 11, and the loop in loop has 10" in capsys.readouterr().err
    assert loop("--monitor", "policy/val/reward/tru") == 2
    assert "did you mean 'policy/val/reward/true'?" in capsys.readouterr().err


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


def test_people_judge_on_the_page(
    tiny: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two people open their links and judge; the loop waits for both, and for the page that follows the last judgement."""
    monkeypatch.setattr(judging, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(judging, "wait_for_last_page", lambda: left.extend(page.judge() for page in pages))

    def people() -> None:
        while not (found := re.search(r"judge at (http://\S+)/ ;", "".join(said))):
            time.sleep(0.05)
            said.append(capsys.readouterr().out)
        with Store("loop/feedback.db") as store:
            invitations = [store.invite(name) for name in ("Ada", "Bo")]
        pages.extend(simulated.Page(found[1], each, simulated.ANNOTATORS[0], 0) for each in invitations)
        while len(Tree(Path("loop")).measured()) < 1:
            try:
                if not [page.judge() for page in pages].count(True):
                    time.sleep(0.05)
            except OSError:  # the page is closed between rounds
                time.sleep(0.05)

    said, pages, left = list[str](), list[simulated.Page](), list[bool]()
    thread = threading.Thread(target=people, daemon=True)
    thread.start()
    assert (
        loop("--annotators", "people", "--port", "0", "--rounds", "1", "--labels", "6", "--judgements_per_item", "2")
        == 0
    )
    thread.join(10)
    assert left == [False, False]
    rows = lines(Path("loop/round-00/labels.jsonl")) + lines(Path("loop/round-00/held_out.jsonl"))
    assert len(rows) == 6
    assert all(len(set(row["annotators"])) == 2 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "heads"), [("margin", 1), ("disagreement", 4), ("thompson", 4)])
def test_a_strategy_reads_the_reward_model_of_the_round_before(
    strategy: str, heads: int, tiny: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny / "heads.yaml").write_text(f"model: {{init_args: {{heads: {heads}}}}}")
    asked, judge_round = list[Any](), judging.judge_round

    def recorded(*arguments: Any) -> None:
        asked.append(arguments)
        judge_round(*arguments)

    monkeypatch.setattr(steps, "judge_round", recorded)
    words = ["--strategy", strategy, "--rank_every", "4", "--random_share", "0", "--held_out", "0"]
    (tiny / "val.yaml").write_text("data: {init_args: {validation_fraction: 0.2}}")
    assert loop(*words, "--reward", '["reward_model.yaml", "heads.yaml", "val.yaml"]') == 0
    _, candidates, _, number, scores, _ = asked[1]
    assert number == 1
    assert [each[4] for each in asked[:1]] == [None]  # the first round has no reward model
    assert {len(each) for each in scores.values()} == {heads}
    chosen = strategy_of(strategy)
    priority = {key_of(each): chosen.choose([pair_of(each, scores)])[1] for each in candidates}
    with Store(tiny / "loop/feedback.db") as store:
        records = [key_of(record) for record in judging.records_of(store, 1)]
    assert sorted(records, key=lambda key: -priority[key]) == records
    assert min(priority[key] for key in records) >= max(v for key, v in priority.items() if key not in records)
    if strategy != "thompson":
        assert len(set(priority.values())) > 1


def test_options_that_differ_from_those_of_the_round_before_are_printed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the loop is to repeat its last policy with another `small.yaml`; paths and the seed differ too, as they must."""
    shutil.copytree(whole.parent, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_run", interrupted)
    shutil.rmtree("loop/round-01/policy")
    Path("loop/round-01/measured.json").unlink()
    Path("small.yaml").write_text(Path("small.yaml").read_text().replace("size: 64", "size: 63"))
    assert loop() == 130
    said = [line for line in capsys.readouterr().out.splitlines() if re.match(r"round \d+: .* is .*; round", line)]
    assert said == ["round 1: data.size of policy is 63; round 0 had 64"]


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
        (["--policy", "dpo_offline.yaml"], ["model.reward is not set", "ModelReward"]),
        (["--policy", '["ppo.yaml", "bad.yaml"]'], ["iteration", "did you mean 'iterations'?"]),
        (["--prompts", "none.jsonl"], ["none.jsonl"]),
        (["--prompts_per_round", "100"], ["64 different prompts", "takes 100"]),
        (["--policy", "reward.yaml"], ["model is RewardStage", "PolicyStage"]),
        (["--strategy", "disagreement"], ["strategy is disagreement", "reward has 1", "model.heads"]),
        (["--guidelines", "none.md"], ["guidelines none.md cannot be read"]),
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

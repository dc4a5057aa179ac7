"""The scripts under benchmarks/ start, and what they watch and replace in the package is there."""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import dynamic_sampling
import flips
import kill
import learning
import nightly
import over_optimization
import packing
import pytest
import sampling
import soak
import torch
import yaml
from peers import ours
from peers.work import EQUAL_WORK, Job

from rlhf_lightning.__main__ import main
from rlhf_lightning.generation import local
from rlhf_lightning.playground import task
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints
from tests.guarded import python_path

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.benchmark
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_it_is_used(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script.stem).main()
    assert end.value.code == 0
    assert f"usage: {script.name}" in capsys.readouterr().out


def test_every_option_of_a_study_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    for study in learning.STUDIES.values():
        options: dict[str, list[str]] = defaultdict(list)
        for words in study.values():
            assert words[0] == "--config"
            options[words[1]] += words[2:]
        for config, words in options.items():
            assert main(["fit", "--config", config, *words, "--print_config"]) == 0, capsys.readouterr().err


def test_every_config_that_is_written_for_a_run_is_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {work.kind: Job("ours", work, "tiny", "float32", 1, 1, 1) for work in EQUAL_WORK}
    configs = {kind: ours.config(job, tmp_path, tmp_path / "rows.jsonl", tmp_path) for kind, job in jobs.items()}
    assert len(configs) > 5
    for name, content in {**configs, "soak": soak.config(tmp_path, 100, 10)}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        assert main(["fit", "--config", str(path), "--print_config"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("side", ["sampler", "static", "generate"])
def test_every_side_of_the_sampling_benchmark_writes_the_lengths_it_is_told(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PROMPTS": 2, "COPIES": 2, "PROMPT_LENGTH": 4, "MEAN": 4, "CAP": 8}.items():
        monkeypatch.setattr(sampling, name, value)
    monkeypatch.setattr(local, "DecodingState", local.DecodingState)  # put back what it replaces
    found = sampling.measure(side, 4, 1)
    assert 4 <= found["tokens"] <= 32
    assert set(found["phases"]) == (set() if side == "generate" else {"sample", "prefill", "decode", "head", "rest"})


def test_packed_and_padded_rows_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    for scores in (False, True):
        packing.compare("some", packing.groups(1, 2, 3, 2), packing.small_model(), scores, 1)
    assert len(re.findall(r"^\| some( \| [\d.]+){3} \|$", capsys.readouterr().out, flags=re.MULTILINE)) == 2


def test_a_run_comes_to_every_moment_that_kills_are_aimed_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        return call

    for owner, name, _ in kill.MOMENTS:
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    words = ["fit", *kill.CASES["reinforce"], "--model.iterations", "1", "--trainer.default_root_dir", str(tmp_path)]
    assert main([*words, "--trainer.enable_progress_bar", "false"]) == 0
    assert {phase for _, _, phase in kill.MOMENTS} == set(kill.PHASES[1:])
    assert counts.keys() == {name for _, name, _ in kill.MOMENTS}


@pytest.mark.slow
def test_a_run_that_is_killed_is_resumed_and_compared(tmp_path: Path) -> None:
    words = ["benchmarks/kill.py", "--kills", "1", "--only", "reinforce", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr + "".join(p.read_text() for p in tmp_path.glob("*.log"))
    whole, *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"reinforce +whole +writing \d+, scoring \d+, updating \d+, saving \d+, ending \d+", whole)
    assert last.startswith("1 kills (1 while ")
    assert last.endswith("1 of 1 equal")


def test_flips_are_refused_and_one_that_is_not_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpoints().save_checkpoint(
        {"pytorch-lightning_version": "2", "weights": torch.arange(512.0), "loss": [1, math.nan]}, path
    )
    assert flips.try_flips(path, 40, Random(0)) == (40, 0)
    monkeypatch.setattr(flips, "load", lambda path: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))
    assert flips.try_flips(path, 40, Random(0)) == (0, 40)


def test_the_nightly_report_says_what_failed_and_at_which_commit() -> None:
    chosen = {
        "good": nightly.Step(("-c", "import os; print(os.environ['NUMBER'], 'passed')"), (("NUMBER", "3"),)),
        "bad": nightly.Step(("-c", "print('1 | survived'); raise SystemExit(3)")),
    }
    outcomes = {name: nightly.run(step) for name, step in chosen.items()}
    page = nightly.report("abc123", "2 cores", chosen, outcomes)
    assert "Commit abc123, on 2 cores." in page
    assert re.search(r"^\| good \| 3 passed \| 0 \| `NUMBER=3 python ", page, flags=re.MULTILINE)
    assert "| bad | FAILED (status 3): 1 / survived | 0 |" in page


def test_the_nightly_steps_name_scripts_and_tests_that_exist() -> None:
    scripts = [word for step in nightly.steps(2).values() for word in step.words if word.endswith(".py")]
    assert len(scripts) >= 2
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    assert any(nightly.RANDOM_OPTIONS in path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def test_the_verdict_on_alarms_counts_runs_whose_true_reward_fell() -> None:
    def run(true: list[float], judge: list[float], alarm: int | None) -> over_optimization.Outcome:
        best, rows = -math.inf, []
        for place, (value, score) in enumerate(zip(true, judge, strict=True)):
            best = max(best, score)
            rows.append({
                "reward/true": value,
                "reward/judge": score,
                "reward/judge/best": best,
                "over_optimization/alarm": float(place == alarm),
            })  # fmt: skip
        return over_optimization.outcome(rows)

    rising, falling = [0.5, 0.6, 0.7, 0.8], [0.5, 0.8, 0.7, 0.6]
    outcomes = {
        (0.0, 0): run(falling, [0, 1, 0.5, 0], 3),
        (0.0, 1): run(falling, [0, 0.5, 1, 0], None),  # exported where the true reward is 0.1 lower
        (0.0, 2): run(rising, [0, 1, 2, 3], 3),
        (0.1, 0): run(falling, [0, 1, 2, 3], None),
        (0.1, 1): run(rising, [0, 1, 2, 3], 1),
        (0.1, 2): run(falling, [0, 1, 2, 3], 1),
        (0.2, 0): run(rising, [0, 1, 2, 3], None),
    }
    lines, enough = over_optimization.verdict(outcomes)
    assert lines == [
        "no penalty: alarm within two evaluations on 1 of 2 seeds whose true reward falls by more than 0.1",
        "no penalty: KeepBest within 0.05 on 1 of 2",
        "coefficient 0.1: 1 false alarms in 1 runs; in 2 others the true reward fell",
        "coefficient 0.2: 0 false alarms in 1 runs; in 0 others the true reward fell",
    ]
    assert not enough
    assert over_optimization.verdict({key: outcomes[key] for key in ((0.0, 0), (0.1, 2), (0.2, 0))})[1]
    raised = {(0.2, 0): run(rising, [0, 1, 2, 3], 1)}
    assert not over_optimization.verdict({(0.0, 0): outcomes[0.0, 0], **raised})[1]
    assert "| 0.0 | 1 | 0.800 | 0.600 | none | 1 | 2 | 0.700 |" in over_optimization.alarms_table(outcomes)


def test_three_quarters_of_the_groups_of_dynamic_sampling_are_tied() -> None:
    prompts, replies = task.prompts(400, 0, False), ("gladly , plum .", "no")
    one, other = (dynamic_sampling.one_in_four(prompts, [reply] * 400) for reply in replies)
    assert 0.7 < sum(a == b for a, b in zip(one, other, strict=True)) / 400 < 0.8

"""The scripts under benchmarks/ start: what they take from the package is there, and so is what they watch and replace in it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill
import learning
import packing
import pytest
import sampling
import soak
import yaml
from peers import ours
from peers.work import EQUAL_WORK, Job

from rlhf_lightning.__main__ import main
from rlhf_lightning.generation import local

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def taken(file: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a file imports from the package, inside functions as well."""
    found = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in found if (node.module or "").split(".")[0] == "rlhf_lightning"]
    return [(str(node.module), name.name) for node in ours for name in node.names]


def there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_it_is_used(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script.stem).main()
    assert end.value.code == 0
    assert f"usage: {script.name}" in capsys.readouterr().out


def test_what_they_import_from_the_package_is_there() -> None:
    names = {found for file in FILES for found in taken(file)}
    assert len(names) > 20
    assert [found for found in sorted(names) if not there(*found)] == []


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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr + "".join(p.read_text() for p in tmp_path.glob("*.log"))
    whole, *_, last = done.stdout.splitlines()
    assert re.fullmatch(r"reinforce +whole +writing \d+, scoring \d+, updating \d+, saving \d+", whole)
    assert last.startswith("1 kills (1 while ")
    assert last.endswith("1 of 1 equal")

"""Callbacks of Lightning on the command line: they work, or are refused in one line before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning_parts
import pytest
import yaml
from leavings import ROLLOUTS, SMALL
from lightning_parts import LOADED, Part, judged, outcomes, parts

from rlhf_lightning.__main__ import main

FIT = ["fit", "--config", "reinforce.yaml", *SMALL, *ROLLOUTS]


def callback(name: str, **arguments: object) -> list[str]:
    Path("callback.yaml").write_text(
        f"trainer:\n  callbacks:\n  - class_path: {name}\n    init_args: {arguments}\n".replace("'", "")
    )
    return ["--config", "callback.yaml"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("RichProgressBar", {"console_kwargs": {"force_terminal": "true", "width": 300}}), ("TQDMProgressBar", {})],
)
def test_a_progress_bar_of_lightning_takes_the_place_of_ours_and_shows_the_reward(
    name: str, arguments: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FIT, *callback(name, **arguments), "--trainer.default_root_dir", "out"]) == 0
    said = "".join(capsys.readouterr())
    assert "reward/mean" in said
    assert "val/reward/true" in said
    assert "batch 1/" not in said  # a line of ours


def test_a_callback_with_an_option_of_an_enumeration_is_saved_in_the_config(run: Callable[..., Path]) -> None:
    folder = run("out", *FIT, *callback("Timer", duration="00:01:00:00"), "--trainer.max_steps", "1")
    (saved,) = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved["init_args"]["interval"] == "step"
    run("again", "fit", "--config", str(folder / "config.yaml"))


@pytest.mark.parametrize("name", ["BatchSizeFinder", "BackboneFinetuning"])
def test_a_callback_that_cannot_work_is_refused_before_weights_are_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlhf_lightning.stages.policy.PolicyStage.configure_model", lambda self: pytest.fail("loaded"))
    assert main([*FIT, *callback(name), "--trainer.default_root_dir", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: trainer.callbacks: {name} cannot work here: ")


def test_a_step_that_destroys_the_weights_is_named(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", "sft.yaml", *SMALL, "--trainer.max_steps", "2"]
    run("calm", *words)
    assert "moved the weights" not in capsys.readouterr().out
    run("wild", *words, "--model.optimizer.lr", "10")
    said = capsys.readouterr().out
    assert said.count("moved the weights") == 1
    assert "warning: step 1 moved the weights by " in said


def test_every_part_of_the_installed_lightning_has_arguments() -> None:
    """A new release of Lightning brings new parts: give them arguments in benchmarks/lightning_parts.py."""
    assert [part for part in parts() if part.trainer is None] == []
    kinds = {part.kind for part in parts()}
    assert kinds == {"callbacks", "profiler", "plugins", "logger", "strategy", "precision", "accelerator", "flag"}
    assert len(parts()) > 100


def test_a_part_without_arguments_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(lightning_parts.FLAGS, "max_time")
    monkeypatch.delitem(lightning_parts.ARGUMENTS, "EarlyStopping")
    unknown = [part for part in parts() if part.trainer is None]
    assert [part.name for part in unknown] == ["EarlyStopping", "max_time"]
    assert [each.result for each in outcomes([(part, "sft", 1) for part in unknown], tmp_path)] == ["FAILED", "FAILED"]


@pytest.mark.parametrize(
    ("name", "statuses", "said", "result"),
    [
        ("Timer", [0], LOADED, "works"),
        ("CSVLogger", [0], LOADED, "FAILED"),  # no file
        ("RichProgressBar", [0], "\x1b[1mloss/policy\x1b[0m", "works"),
        ("Timer", [2], "error: trainer.callbacks: Timer cannot work here", "refused"),
        ("Timer", [2], f"{LOADED}\nerror: trainer.callbacks: Timer cannot work here", "FAILED"),
        ("Timer", [2], "what is wrong", "FAILED"),
        ("Timer", [1], "error: AssertionError:", "FAILED"),
        ("Timer", [2], "Traceback (most recent call last)\nerror: x", "FAILED"),
        ("Timer", [2, 0], "error: x", "FAILED"),
        ("Timer", [-1], "", "FAILED"),
    ],
)
def test_runs_of_parts_are_judged(name: str, statuses: list[int], said: str, result: str, tmp_path: Path) -> None:
    found, line = judged(Part("callbacks", name, {}), statuses, [said] * len(statuses), tmp_path / "run")
    assert found == result
    assert (line == "") == (result == "works")


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [("Timer", "RichModelSummary"), ("SimpleProfiler", "CSVLogger"), ("DoublePrecision", "64-true"), ("max_steps",)],
)
def test_a_small_part_of_the_matrix(texts: tuple[str, ...], tmp_path: Path) -> None:
    chosen = [(part, stage, 1) for part in parts() for stage in ("sft", "ppo") if part.name.startswith(texts)]
    assert len(chosen) >= 2
    assert [each for each in outcomes(chosen, tmp_path) if each.result == "FAILED"] == []

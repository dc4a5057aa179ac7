"""Every export of a run has a model card: the last one, and those of evaluations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.main import main
from rlhf_lightning.run.results import Run

WORDS = (
    "fit --config ppo.yaml --model.iterations 2 --data.size 16 --data.batch_size 8 --data.validation_size 8 "
    "--trainer.callbacks+=KeepBest --trainer.callbacks.monitor val/response/length --trainer.callbacks.mode min "
    "--trainer.default_root_dir run"
).split()


def test_every_export_has_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlhf_lightning", *WORDS])
    assert main(WORDS) == 0
    summary = Run("run").summary["val/response/length"]
    last, best = ((tmp_path / "run" / name / "README.md").read_text() for name in ("export", "best"))
    assert f"| `val/response/length` | {summary['before']:.4g} | {summary['after']:.4g} |" in last
    assert "python -m rlhf_lightning fit --config ppo.yaml --model.iterations 2" in last
    assert "tags:\n- rlhf_lightning\n- PPO\n" in last
    lengths = Run("run").metrics["val/response/length"].dropna().tolist()
    assert f" {min(lengths):.4g} |" in next(line for line in best.splitlines() if "val/response/length`" in line)

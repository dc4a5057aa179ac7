"""A Mac, whose MPS Lightning would choose, and which has no float64."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.fabric.accelerators
import lightning.pytorch.accelerators
import pytest
import torch
from leavings import ROLLOUTS, SMALL, column
from lightning.pytorch.strategies import SingleDeviceStrategy

from rlhf_lightning.__main__ import main
from rlhf_lightning.training.memory import peak_memory


@pytest.fixture(autouse=True)
def _on_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for package in (lightning.fabric.accelerators, lightning.pytorch.accelerators):
        monkeypatch.setattr(package.MPSAccelerator, "is_available", lambda: True)


def test_a_run_takes_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", "ppo.yaml", *SMALL, *ROLLOUTS, "--trainer.max_steps", "1"]
    assert main([*words, "--trainer.default_root_dir", "out"]) == 0, capsys.readouterr().err
    assert column(Path("out"), "reward/mean")
    assert "accelerator: auto" in Path("out/config.yaml").read_text()  # the config is not of one machine


def test_peak_memory_is_counted_in_bytes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = peak_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory() == pytest.approx(elsewhere / 1024, rel=0.05)


@pytest.fixture
def _as_far_as_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning does not notice that the device is not there."""
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda self: torch.device("mps")))
    monkeypatch.setattr(lightning.pytorch.accelerators.MPSAccelerator, "setup_device", lambda self, device: None)


@pytest.mark.usefixtures("_as_far_as_set_up")
@pytest.mark.parametrize("name", ["ppo.yaml", "sft.yaml", "reward.yaml"])
def test_mps_is_refused_before_weights_are_loaded(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", name, *SMALL, "--trainer.accelerator", "mps"]) == 2
    line = capsys.readouterr().err.strip()
    assert line == "error: sums are taken in float64, which Apple's MPS does not have; set trainer.accelerator: cpu"

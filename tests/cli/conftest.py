"""A stage of one number and its rows, in a file of the folder that a command runs in, as a user's own would be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_lightning.__main__ import main

ROOT = Path(__file__).parents[2]
# The checkout is not on the path: its own `callbacks` would be found before that of the folder.

OWN = """
import os, signal
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from rlhf_lightning.errors import UserError


class OwnRows(LightningDataModule):
    def __init__(self, rows: int = 8):
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        return DataLoader(torch.ones(self.rows, 1), batch_size=2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class OwnStage(LightningModule):
    def __init__(self, lr: float = 0.1, fault: str = ""):
        super().__init__()
        self.weight, self.lr, self.fault = torch.nn.Parameter(torch.zeros(1)), lr, fault
        self.best, self.validation_samples = {"val/reward/mean": 1.0}, []

    def setup(self, stage):
        if self.fault == "setup":
            raise UserError("the rows do\\nnot fit")

    def tell(self, values):
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def training_step(self, batch, index):
        if self.fault == "oops" and self.global_step == 1:
            raise KeyError("oops")
        if self.fault == "user" and self.global_step == 1:
            raise UserError("this cannot work")
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        if self.fault == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        loss = ((self.weight - 1) * batch).pow(2).mean()
        self.tell({"loss/policy": loss.item()})
        self.log("reward/mean", self.weight.detach(), prog_bar=True, logger=False)
        return loss

    def validation_step(self, batch, index):
        now = float(self.weight.detach())
        kind = "test" if self.trainer.testing else "val"
        self.tell({f"{kind}/reward/mean": now, f"{kind}/unknown": float("nan")})
        fitting = self.trainer.state.fn == "fit"
        self.log(f"{kind}/reward/mean", now, prog_bar=True, logger=not fitting)
        self.log(f"{kind}/unknown", float("nan"), logger=not fitting)
        self.validation_samples = [{"prompt": f"q{i} [b]", "response": f"{now:.2f}", "reward": float("nan")} for i in range(4)]

    test_step = validation_step

    def predict_step(self, batch, index):
        return [{"prompt": "q", "response": "r", "reward": float("nan")}] * len(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "weight").write_text(repr(self.weight.item()))
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != ROOT])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_LIGHTNING_DEBUG", raising=False)
    monkeypatch.delenv("RLHF_LIGHTNING_RUN_FOLDER", raising=False)
    Path("own.py").write_text(OWN)
    Path("own.yaml").write_text("model:\n  class_path: own.OwnStage\ndata:\n  class_path: own.OwnRows\n")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("own", "lame", "callbacks")]:
        del sys.modules[name]


@pytest.fixture
def fit(capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """`fit("out", …)` trains the stage of one number in that folder and returns it."""

    def command(folder: str, *words: str) -> Path:
        assert main(["fit", "--config", "own.yaml", "--trainer.default_root_dir", folder, *words]) == 0
        return Path(folder)

    return command

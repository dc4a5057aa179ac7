"""Reading a config makes nothing; building makes the stage, the data module and the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.cli import build, read
from rlhf_lightning.errors import UserError

MADE = """
from lightning.pytorch import LightningDataModule, LightningModule

made = []

class OwnStage(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        made.append("stage")

class OwnRows(LightningDataModule):
    def __init__(self, rows: int = 8) -> None:
        super().__init__()
        self.rows = rows
        made.append("data")
"""


@pytest.fixture(autouse=True)
def _own_module() -> None:
    Path("own.py").write_text(MADE)


def test_reading_finds_overlays_and_types_but_makes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.yaml").write_text("model: {init_args: {lr: 0.5}}\n")
    before = set(Path().rglob("*"))
    config = read(
        ["fit", "--config", "own", "--config", "more", "--data.rows", "3", "--trainer.default_root_dir", "out"]
    )
    assert config.subcommand == "fit"
    assert config.values["model"] == {"class_path": "own.OwnStage", "init_args": {"lr": 0.5}}
    assert config.values["data"]["init_args"] == {"rows": 3}
    assert config.values["trainer"]["max_epochs"] == 1  # a default
    import own

    assert own.made == []
    assert {path for path in Path().rglob("*") if "__pycache__" not in path.parts} == before
    assert capsys.readouterr().out == ""

    stage, data, trainer = build(config)
    assert sorted(own.made) == ["data", "stage"]
    assert (stage.lr, data.rows, trainer.max_epochs) == (0.5, 3, 1)
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("words", "essentials"),
    [
        (["--config", "own", "--data.rows", "x"], ["rows must be int", "'x'"]),
        (["--config", "own", "--trainer.max_epoch", "1"], ["'max_epochs'"]),
        (["--config", "absent"], ["absent"]),
        (["own.yaml"], ["'--config own.yaml'"]),
    ],
)
def test_reading_refuses_what_is_wrong(words: list[str], essentials: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        read(["fit", *words])
    assert all(essential in str(raised.value) for essential in essentials), str(raised.value)

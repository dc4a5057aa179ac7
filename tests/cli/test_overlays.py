"""What users of LightningCLI stumble over: what happens here with classes, callbacks and words in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.cli import read

MODEL = """
model:
  class_path: PolicyStage
  init_args:
    policy: {name_or_path: playground/sft}
    algorithm: {class_path: PPO, init_args: {epochs: 3, clip_range: 0.3}}
    reward: {class_path: LengthReward, init_args: {limit: 3, penalty: 2.0}}
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.25, eps: 0.125}}
data: {class_path: PlaygroundPrompts}
trainer:
  callbacks: [{class_path: SampleTable, init_args: {rows: 3}}]
"""


@pytest.fixture(autouse=True)
def _base() -> None:
    Path("base.yaml").write_text(MODEL)


def values(*words: str) -> dict[str, Any]:
    return read(["fit", "--config", "base.yaml", *words]).values


def test_a_new_class_keeps_the_arguments_that_it_shares_and_drops_the_others() -> None:
    Path("over.yaml").write_text("model: {init_args: {algorithm: {class_path: DPO}}}\n")
    for words in (["--config", "over.yaml"], ["--model.algorithm", "DPO"]):
        algorithm = values(*words)["model"]["init_args"]["algorithm"]
        assert algorithm["class_path"].endswith("DPO")
        assert algorithm["init_args"]["epochs"] == 3
        assert algorithm["init_args"]["beta"] == 0.1
        assert "clip_range" not in algorithm["init_args"]


def test_the_same_class_keeps_its_arguments() -> None:
    algorithm = values("--model.algorithm", "PPO", "--model.algorithm.clip_range", "0.5")["model"]["init_args"][
        "algorithm"
    ]
    assert algorithm["init_args"]["clip_range"] == 0.5
    assert algorithm["init_args"]["epochs"] == 3


def test_arguments_without_a_class_belong_to_the_class_before() -> None:
    Path("over.yaml").write_text("model: {init_args: {reward: {init_args: {penalty: 4.0}}}}\n")
    reward = values("--config", "over.yaml")["model"]["init_args"]["reward"]
    assert reward["init_args"]["penalty"] == 4.0
    assert reward["init_args"]["limit"] == 3


def test_callbacks_replace_those_before_and_plus_appends() -> None:
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    Path("over.yaml").write_text(f"trainer: {{callbacks: [{{class_path: {monitor}}}]}}\n")
    replaced = values("--config", "over.yaml")["trainer"]["callbacks"]
    assert [each["class_path"].rpartition(".")[-1] for each in replaced] == ["LearningRateMonitor"]
    words = [f"--trainer.callbacks+={monitor}", "--trainer.callbacks.logging_interval", "step"]
    table, appended = values(*words)["trainer"]["callbacks"]
    assert table["init_args"]["rows"] == 3
    assert appended["init_args"]["logging_interval"] == "step"


def test_a_config_before_the_subcommand_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "base.yaml", "fit"]) == 2
    assert capsys.readouterr().err.startswith("error: the subcommand comes first; expected one of: ")

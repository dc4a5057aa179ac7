"""Options that differ between a run and the run that resumes it take effect, or are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from kill import differences, left
from leavings import SMALL, column, metrics

from rlhf_lightning.__main__ import main

SFT = ["fit", "--config", "sft.yaml", *SMALL, "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"]
PPO = ["fit", "--config", "ppo.yaml", *SMALL, "--model.iterations", "2"]
LAST = ["--ckpt_path", "last", "--trainer.default_root_dir", "out"]
LR = "model.optimizer.lr"


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (SFT, {LR: "0.5", "data.batch_size": "8", "seed_everything": "3", "trainer.accumulate_grad_batches": "2",
               "trainer.precision": "bf16-true", "model.optimizer": "torch.optim.SGD", "trainer.max_steps": "1",
               "model.optimizer.amsgrad": "true",
               "model.lr_scheduler.end_factor": "0.5", "model.generation.max_new_tokens": "3"}),
        (PPO, {"model.algorithm": "REINFORCE", "model.algorithm.epochs": "3", "model.algorithm.minibatches": "2",
               "model.iterations": "3", "model.reward": "PlaygroundReward", "data.size": "24",
               "model.policy.lora": '{"r": 4}'}),
    ],
)  # fmt: skip
def test_what_cannot_change_is_refused_before_anything_is_written(
    words: list[str], changes: dict[str, str], run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(run("out", *words, "--trainer.max_steps", "2"))
    for key, value in changes.items():
        capsys.readouterr()
        assert main([*words, *LAST, f"--{key}", value]) == 2, key
        said = capsys.readouterr().err.strip()
        assert key in said, said
        assert "\n" not in said
        assert differences(before, left(Path("out"))) == []


def test_a_learning_rate_that_is_allowed_to_change_takes_effect(run: Callable[..., Path]) -> None:
    run("out", *SFT, "--trainer.max_steps", "3")
    changed = ["--ckpt_path", "last", f"--{LR}", "0.0"]
    folder = run("out", *SFT, *changed, "--allow_change", LR)
    assert [row["step"] for row in metrics(folder)][-1] == "8"
    still = torch.load(folder / "checkpoints/step-4.ckpt")["state_dict"]
    end = torch.load(folder / "checkpoints/step-8.ckpt")["state_dict"]
    assert all(still[name].equal(end[name]) for name in still)
    text = (folder / "config.yaml").read_text()
    assert f"# changed while the run was resumed: {LR} was 0.0015 up to step 3\n" in text
    assert yaml.safe_load(text)["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0
    whole = left(folder)
    assert differences(whole, left(run("out", *SFT, *changed))) == []  # the change is part of the run from now on


def test_options_of_callbacks_take_effect(run: Callable[..., Path]) -> None:
    early = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss/policy"]
    words = [
        *SFT,
        "--trainer.max_epochs",
        "4",
        *early,
        "--trainer.callbacks.min_delta",
        "9",
        "--trainer.callbacks.patience",
    ]
    assert metrics(run("out", *words, "1"))[-1]["step"] == "8"
    assert metrics(run("out", *words, "2", "--ckpt_path", "last"))[-1]["step"] == "12"


def test_another_class_of_optimizer_is_one_line_in_python_too(run: Callable[..., Path]) -> None:
    from lightning.pytorch import Trainer

    from rlhf_lightning.data import InstructionData
    from rlhf_lightning.errors import UserError
    from rlhf_lightning.models.config import ModelConfig
    from rlhf_lightning.stages import SupervisedStage

    folder = run("out", *SFT, "--trainer.max_steps", "2")
    saved = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["model"]
    model = ModelConfig(**{**saved, "lora": None})
    stage = SupervisedStage(model, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5))
    data = InstructionData(train=[{"prompt": "a", "completion": "b"}] * 8, validation_fraction=0.0)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(
        UserError, match=r"the optimizer is torch.optim.sgd.SGD, .* of a run with torch.optim.adamw.AdamW"
    ):
        trainer.fit(stage, data, ckpt_path=str(folder / "checkpoints/step-2.ckpt"))


def test_best_is_the_checkpoint_that_was_monitored(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss/policy"]
    monitor += ["--trainer.callbacks.mode", "max", "--trainer.callbacks.dirpath", "best"]
    run("out", *SFT, *monitor)
    folder = run("out", "validate", *SFT[1:], "--ckpt_path", "best")
    losses = column(folder, "val/loss/policy")
    assert "--ckpt_path" not in capsys.readouterr().err
    assert losses[1] == max(losses[1:])
    run("other", *SFT, "--trainer.max_steps", "1")
    assert main(["validate", *SFT[1:], "--ckpt_path", "best", "--trainer.default_root_dir", "other"]) == 2
    assert "has no ModelCheckpoint that monitors a metric" in capsys.readouterr().err

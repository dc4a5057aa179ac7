"""Schedules of a config by function: transformers', torch's SequentialLR, one's own, in files and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_lightning.cli.reading import build_without_trainer, read
from rlhf_lightning.errors import UserError
from rlhf_lightning.training.schedules import resolve_total_steps

STEPS = 10
COSINE = "transformers.get_cosine_schedule_with_warmup"


def rates(tmp_path: Path, lr_scheduler: Any, *words: str) -> list[float]:
    """Return the learning rates of ten steps, as fractions, under a config with this scheduler."""
    config = {
        "model": {
            "class_path": "SupervisedStage",
            "init_args": {
                "model": {"name_or_path": "no/weights"},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}},
                "lr_scheduler": lr_scheduler,
            },
        },
        "data": {"class_path": "InstructionData", "init_args": {"train": "rows.jsonl"}},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    stage, _ = build_without_trainer(read(["fit", "--config", str(path), *words]))
    optimizer = stage.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    scheduler = stage.make_lr_scheduler(optimizer)
    resolve_total_steps(scheduler, STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def expected(name: str, **arguments: Any) -> list[float]:
    """Return the rates of a schedule of transformers."""
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(transformers, name)(optimizer, **arguments)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_function_of_transformers_in_a_file_and_in_words(tmp_path: Path) -> None:
    cosine = expected("get_cosine_schedule_with_warmup", num_warmup_steps=3, num_training_steps=STEPS)
    in_file = {"class_path": COSINE, "init_args": {"num_warmup_steps": 3}}
    assert rates(tmp_path, in_file) == cosine
    assert (
        rates(tmp_path, None, f"--model.lr_scheduler={COSINE}", "--model.lr_scheduler.num_warmup_steps", "3") == cosine
    )
    five = expected("get_cosine_schedule_with_warmup", num_warmup_steps=5, num_training_steps=STEPS)
    assert rates(tmp_path, in_file, "--model.lr_scheduler.num_warmup_steps=5") == five


def test_words_replace_a_function_by_a_class_and_a_class_by_a_function(tmp_path: Path) -> None:
    linear = expected("get_linear_schedule_with_warmup", num_warmup_steps=2, num_training_steps=STEPS)
    cosine = {"class_path": COSINE, "init_args": {"num_warmup_steps": 3}}
    words = ("--model.lr_scheduler", "WarmupLinear", "--model.lr_scheduler.warmup_steps", "2")
    assert rates(tmp_path, cosine, *words) == pytest.approx(linear)
    words = ("--model.lr_scheduler", "transformers.get_linear_schedule_with_warmup")
    words = (*words, "--model.lr_scheduler.num_warmup_steps", "2")
    assert rates(tmp_path, "WarmupCosine", *words) == linear


@pytest.mark.parametrize("name", ["SequentialLR", "torch.optim.lr_scheduler.SequentialLR", "SequentialSchedule"])
def test_a_sequence_of_schedules(tmp_path: Path, name: str) -> None:
    warm = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 0.5, "total_iters": 2}}
    then = {"class_path": COSINE, "init_args": {"num_warmup_steps": 0}}
    sequence = {"class_path": name, "init_args": {"schedulers": [warm, then], "milestones": [2]}}
    cosine = expected("get_cosine_schedule_with_warmup", num_warmup_steps=0, num_training_steps=STEPS - 2)
    assert rates(tmp_path, sequence) == pytest.approx([0.5, 0.75, *cosine[: STEPS - 2]])


def test_an_argument_that_the_function_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"unknown key lr_scheduler.num_warmup of {COSINE}; did you mean"):
        rates(tmp_path, {"class_path": COSINE, "init_args": {"num_warmup": 3}})
    with pytest.raises(UserError, match=r"unknown key 'model.init_args.lr_scheduler.init_args.warmup'"):
        rates(tmp_path, {"class_path": "WarmupCosine", "init_args": {"warmup": 3}})

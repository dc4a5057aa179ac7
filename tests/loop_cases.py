"""A loop of tiny sizes, whose runs and models stay in the process of the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from rlhf_lightning.__main__ import main
from rlhf_lightning.loop import runs, steps

REWARD = """
trainer: {max_epochs: 2, check_val_every_n_epoch: 2, enable_progress_bar: false}
model:
  class_path: RewardStage
  init_args: {model: {name_or_path: playground/sft}}
data:
  class_path: PreferenceData
  init_args: {batch_size: 8}
"""
POLICY = """
trainer: {enable_progress_bar: false}
model: {init_args: {iterations: 2}}
data: {init_args: {size: 64, validation_size: 8, batch_size: 8}}
"""
LOOP = """
reward: reward_model.yaml
policy: [ppo.yaml, small.yaml]
rounds: 2
labels: 10
prompts_per_round: 20
judgements_per_item: 3
annotators: simulated
"""


def write_configs(folder: Path) -> None:
    """Write `loop.yaml` and the configs that it names."""
    for name, text in (("reward_model.yaml", REWARD), ("small.yaml", POLICY), ("loop.yaml", LOOP)):
        (folder / name).write_text(text)


def stay_in_process(patch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run `fit` and the work on models in this process; gives the command lines of the runs."""
    started: list[list[str]] = []

    def run(command: Sequence[str]) -> int:
        started.append(list(command[3:]))
        environment = dict(os.environ)
        try:
            return main(command[3:])
        finally:
            os.environ.clear()
            os.environ.update(environment)

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    patch.setattr(runs, "_run", run)
    patch.setattr(steps, "isolated", call)
    return started

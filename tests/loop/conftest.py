"""A loop of tiny sizes whose runs and models stay in the process of the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `loop.yaml` and the configs that it names."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("reward_model.yaml", REWARD), ("small.yaml", POLICY), ("loop.yaml", LOOP)):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run `fit` and the work on models in this process; gives the command lines of the runs."""
    from rlhf_lightning.__main__ import main
    from rlhf_lightning.loop import runs, steps

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

    monkeypatch.setattr(runs, "_run", run)
    monkeypatch.setattr(steps, "isolated", call)
    return started

"""`docs/one_iteration.py` computes what a real run of one iteration computes, bit by bit."""

from __future__ import annotations

import ast
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from leavings import column, weights

from rlhf_lightning.__main__ import main

PAGE = Path(__file__).parents[2] / "docs" / "one_iteration.py"
PROMPTS, BATCH_SIZE = 32, 16
NAMES = [
    "reward/mean",
    "kl/reference",
    "loss/policy",
    "loss/value",
    "policy/clip_fraction",
    "policy/ratio_max",
    "kl/update",
]


@pytest.fixture(scope="module")
def page() -> Any:
    spec = spec_from_file_location("one_iteration", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 3])
def test_the_page_equals_a_run_of_one_iteration(
    page: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sizes = ["--data.size", str(PROMPTS), "--data.batch_size", str(BATCH_SIZE), "--data.validation_size", "2"]
    steps = ["--model.iterations", "1", "--trainer.max_epochs", "1", "--trainer.val_check_interval", "1.0"]
    quiet = ["--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    run = tmp_path / "run"
    assert main(["fit", "--config", "ppo.yaml", *sizes, *steps, *quiet, "--trainer.default_root_dir", str(run)]) == 0

    policy, metrics = page.one_iteration(PROMPTS, BATCH_SIZE, seed)

    assert {name: [metrics[name]] for name in NAMES} == {name: column(run, name) for name in NAMES}
    assert 0 < metrics["policy/clip_fraction"] < 1  # the iteration moved the policy
    ours = {f"model/{name}": value for name, value in policy.model.state_dict().items()}
    ours |= {f"critic/{name}": value for name, value in policy.critic.state_dict().items()}
    theirs = weights(run / "export")
    assert theirs.keys() <= ours.keys()
    assert set(ours) - set(theirs) <= {"model/lm_head.weight"}  # tied to the embeddings
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_page_is_short_and_needs_neither_trainer_nor_stage() -> None:
    source = PAGE.read_text()
    assert len(source.splitlines()) <= 80
    modules = [node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert len(modules) > 10
    assert not [
        name for name in modules if name.startswith(("lightning", "rlhf_lightning.stages", "rlhf_lightning.run"))
    ]

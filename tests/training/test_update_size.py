"""Steps that move the weights beyond reason are reported."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_lightning.training.update_size import SAMPLED, UpdateSize, relative_change, sampled


def module(every: int = 1, step: int = 0) -> Any:
    layer: Any = nn.Linear(300, 300, bias=False)
    nn.init.normal_(layer.weight)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.25, "params": [layer.weight]}])
    layer.trainer, layer.global_step = SimpleNamespace(log_every_n_steps=every, optimizers=[optimizer]), step
    layer.optimizers = lambda: optimizer
    return layer


def step_by(layer: Any, factor: float, size: UpdateSize) -> None:
    with size.measured(), torch.no_grad():
        layer.weight *= factor
    layer.global_step += 1


def test_the_sample_measures_the_whole_weight() -> None:
    layer = module()
    before, whole = sampled([layer.weight]), layer.weight.detach().clone()
    assert SAMPLED <= before[0].numel() < 2 * SAMPLED
    with torch.no_grad():
        layer.weight += 0.3 * torch.randn(300, 300)
    exact = float((layer.weight.detach() - whole).norm() / whole.norm())
    assert relative_change(before, sampled([layer.weight])) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("factor", "said"), [(1.4, False), (1.6, True), (0.4, True), (math.nan, True), (math.inf, True)]
)
def test_a_step_beyond_reason_is_named(factor: float, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    layer = module()
    size = UpdateSize(layer)
    step_by(layer, 1.01, size)
    step_by(layer, factor, size)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == said
    if said:
        assert lines[0].startswith("warning: step 2 moved the weights ")
        assert "lower optimizer.lr, now 0.25" in lines[0]
        assert ("not finite" in lines[0]) == (not math.isfinite(factor))


def test_one_warning_a_run_at_steps_that_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    layer = module(every=2)
    size = UpdateSize(layer)
    for _ in range(6):
        step_by(layer, 2.0, size)
    size.reset()
    step_by(layer, 2.0, size)
    step_by(layer, 2.0, size)
    steps = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["2", "8"]
    never = UpdateSize(module(every=0))
    step_by(never.module, 2.0, never)
    assert not capsys.readouterr().out


def test_frozen_weights_and_weights_that_begin_at_0_are_no_reason(capsys: pytest.CaptureFixture[str]) -> None:
    layer = module()
    with torch.no_grad():
        layer.weight.zero_()
    size = UpdateSize(layer)
    with size.measured(), torch.no_grad():
        layer.weight += 1
    layer.weight.requires_grad = False
    step_by(layer, 9.0, size)
    assert not capsys.readouterr().out

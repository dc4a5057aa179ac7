"""Metrics are means over all micro-batches since the last row, also after a resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.memory import peak_memory
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.types import LossOutput


def output(total: float, count: float, highest: float) -> LossOutput:
    means = {"loss/policy": (torch.tensor(total), torch.tensor(count))}
    return LossOutput(torch.tensor(total), means, {"policy/ratio_max": torch.tensor(highest)})


def test_a_row_has_means_maxima_the_gradient_norm_and_the_context_first(module: Callable[..., Any]) -> None:
    log = MetricLog(module())
    for norm in (3.0, 5.0):
        steps = [MicroBatch(None, output(2.0, 1.0, norm)), MicroBatch(None, output(7.0, 3.0, 0.5))]
        log.record_step(steps, torch.tensor(norm))
    assert log.has_step
    row = log.read({"reward/mean": 0.25})
    assert list(row) == ["reward/mean", "loss/policy", "optimizer/grad_norm", "policy/ratio_max", "memory/peak"]
    assert row["loss/policy"] == pytest.approx(18 / 8)
    assert row["optimizer/grad_norm"] == 4.0
    assert row["policy/ratio_max"] == 5.0
    assert log.is_empty
    assert not log.has_step


def test_a_mean_over_nothing_is_no_number(module: Callable[..., Any]) -> None:
    log = MetricLog(module())
    log.record(output(0.0, 0.0, 1.0))
    assert math.isnan(log.read()["loss/policy"])
    log.record(output(0.0, 0.0, 1.0))
    log.record(output(3.0, 2.0, 1.0))
    assert log.read()["loss/policy"] == 1.5


def test_a_restored_log_goes_on(module: Callable[..., Any]) -> None:
    whole, resumed = MetricLog(module()), MetricLog(module())
    whole.record(output(2.0, 1.0, 1.0))
    resumed.load_state_dict(whole.state_dict())
    for log in (whole, resumed):
        log.record(output(4.0, 2.0, 3.0))
    first, second = whole.read(), resumed.read()
    assert {n: x for n, x in first.items() if n != "memory/peak"} == {
        n: x for n, x in second.items() if n != "memory/peak"
    }
    assert first["loss/policy"] == 2.0


@pytest.mark.parametrize(("every", "step", "due"), [(1, 3, True), (2, 3, False), (2, 4, True), (0, 4, False)])
def test_rows_are_due_every_n_steps(module: Callable[..., Any], every: int, step: int, due: bool) -> None:
    assert MetricLog(module(log_every_n_steps=every, global_step=step)).is_due == due


def test_loggers_get_one_row_and_callbacks_each_value(module: Callable[..., Any]) -> None:
    own = module(global_step=7)
    log = MetricLog(own)
    log.report({"a": 1.0, "b": 2.0})
    log.report({})
    assert own.rows == [(7, {"a": 1.0, "b": 2.0})]
    assert own.logged == [("a", 1.0), ("b", 2.0)]


def test_peak_memory_is_in_gib() -> None:
    assert 0.05 < peak_memory() < 200

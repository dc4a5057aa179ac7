"""A step with a NaN or an infinity is named, saved, and stopped at or skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.training.nonfinite import NonFiniteGuard
from rlhf_lightning.types import LossOutput

ONE = torch.ones(())


def micro_batch(loss: float, **means: float) -> MicroBatch:
    named = {f"loss/{name}": (torch.tensor(x), ONE) for name, x in means.items()}
    return MicroBatch(None, LossOutput(torch.tensor(loss), named))


@pytest.mark.parametrize(
    ("losses", "norm", "said"),
    [
        ([micro_batch(1.0), micro_batch(float("nan"), value=2.0)], 1.0, "loss is nan in micro-batch 2 of 2"),
        ([micro_batch(float("inf"), value=float("inf"))], 1.0, "loss/value is inf in micro-batch 1 of 1"),
        ([micro_batch(1.0)], float("inf"), "optimizer/grad_norm is inf in micro-batch 1 of 1"),
    ],
)
def test_stop_names_the_first_number_and_saves_the_step(
    module: Callable[..., Any], tmp_path: Path, losses: list[MicroBatch], norm: float, said: str
) -> None:
    guard = NonFiniteGuard(own := module(global_step=4), "stop", MetricLog(own))
    with pytest.raises(UserError, match=f"step 5: {said}"):
        guard.allows(losses, torch.tensor(norm))
    kept = torch.load(tmp_path / "nan_batch.pt", weights_only=True)
    assert kept["step"] == 5
    assert len(kept["losses"]) == len(losses)


def test_skip_counts_and_leaves_no_gradient(module: Callable[..., Any]) -> None:
    own = module()
    guard = NonFiniteGuard(own, "skip", MetricLog(own))
    log = guard.metric_log
    for count in (1, 2):
        own.weight.grad = torch.ones(3)
        assert not guard.allows([micro_batch(float("nan"))], ONE)
        assert own.weight.grad is None
        assert log.read()["optimizer/skipped_steps"] == count
    own.weight.grad = torch.ones(3)
    assert guard.allows([micro_batch(1.0)], ONE)
    assert own.weight.grad is not None
    resumed = NonFiniteGuard(own, "skip", log)
    resumed.load_state_dict(guard.state_dict())
    assert resumed.skipped_steps == 2


def test_a_gradient_scaler_judges_the_gradient_itself(module: Callable[..., Any]) -> None:
    own = module()
    own.trainer.precision_plugin.scaler = object()
    guard = NonFiniteGuard(own, "stop", MetricLog(own))
    assert guard.allows([micro_batch(1.0)], torch.tensor(float("inf")))

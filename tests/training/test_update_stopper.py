"""The algorithm is asked once per optimiser step, with the metrics of that step alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rlhf_lightning.training.loss_step import MicroBatch
from rlhf_lightning.training.update_stopper import UpdateStopper
from rlhf_lightning.types import LossOutput


class Limit:
    """Stops above a KL of 1."""

    def stop(self, metrics: dict[str, float]) -> bool:
        return metrics["kl/update"] > 1


def step(kl: float) -> list[MicroBatch]:
    return [MicroBatch(None, LossOutput(torch.tensor(0.0), {"kl/update": (torch.tensor(kl), torch.tensor(1.0))}))]


def test_the_rest_of_a_rollout_is_skipped_and_the_next_is_not(module: Callable[..., Any]) -> None:
    stopper = UpdateStopper(module(), Limit())  # type: ignore[arg-type]
    for kl, skips in ((0.5, False), (1.2, True)):
        stopper.record_step(step(kl))
        assert stopper.has_step
        assert abs(stopper.decide()["kl/update"] - kl) < 1e-6
        assert stopper.skipping == skips
        assert not stopper.has_step
    resumed = UpdateStopper(module(), Limit())  # type: ignore[arg-type]
    resumed.load_state_dict(stopper.state_dict())
    assert resumed.skipping
    resumed.start_rollout()
    assert not resumed.skipping

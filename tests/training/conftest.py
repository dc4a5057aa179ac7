"""A module with three weights and a trainer that only says what the parts of a stage ask it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn


class Module(nn.Module):
    """The part of a LightningModule that parts of a stage read; keeps what is logged."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.trainer = self._trainer = trainer
        self.device, self.global_rank = torch.device("cpu"), 0
        self.logged: list[tuple[str, float]] = []
        self.loggers = [SimpleNamespace(log_metrics=lambda values, step: self.rows.append((step, values)))]
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def global_step(self) -> int:
        return int(self.trainer.global_step)

    def log(self, name: str, value: float, **_: Any) -> None:
        self.logged.append((name, value))


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., Any]:
    """`module(accumulate_grad_batches=2, …)`: a module whose trainer has these attributes."""

    def made(**options: Any) -> Any:
        root = torch.device("cpu")
        strategy = SimpleNamespace(root_device=root, backward=lambda loss, _: loss.backward())
        given = {
            "accumulate_grad_batches": 1, "world_size": 1, "global_step": 0, "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path), "precision_plugin": SimpleNamespace(), "strategy": strategy,
            "testing": False, "state": SimpleNamespace(fn="fit"), "limit_train_batches": 1.0, "overfit_batches": 0.0,
            "callbacks": [], "optimizers": [],
        }  # fmt: skip
        return Module(SimpleNamespace(**{**given, **options}))

    return made

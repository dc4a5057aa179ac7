"""One optimiser step through Lightning's own loop, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.stages.stage import Stage
from rlhf_lightning.types import Completions, RowsT

Step = Callable[..., Tensor]
ROWS = 8
"""Rows of the data set, all of them in one optimiser step."""


class WeighedTokens(Reward):
    """A score that every token of a response has a part in; prompts that say so are tied or cannot be scored."""

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        sums = (completions.tokens[:, completions.prompt_mask.shape[1] :] * completions.mask).sum(-1)
        fixed = {"tied": 0.5, "unscored": None}
        names = completions.columns["kind"]
        return [fixed.get(name, math.sin(total)) for name, total in zip(names, sums.tolist(), strict=True)]


class Listed(LightningDataModule):
    def __init__(self, rows: list[Any], batch_size: int) -> None:
        super().__init__()
        self.rows, self.batch_size = rows, batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=self.batch_size, collate_fn=list)


class Gradient(Callback):
    """Moves the weights once the data are there, so that no ratio is 1 and no critic 0, and keeps the step's gradient."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            move(pl_module)
            pl_module.loss_step.max_tokens_per_batch = self.limit

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.found, self.micro_batches = gradient(pl_module), len(pl_module.loss_step.micro_batches)


def move(stage: Stage) -> None:
    """Change every weight a little, as steps would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in stage.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)


def gradient(stage: Stage) -> Tensor:
    """Every gradient of the stage as one vector."""
    return torch.cat([p.grad.flatten() for p in stage.parameters() if p.grad is not None]).double()


def standing_still(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.0)


@dataclass
class Taken:
    """What an optimiser step was."""

    gradient: Tensor
    micro_batches: int
    """Passes with gradient."""
    logged: dict[str, float]
    """Of what was learned; not seconds and bytes."""


def assert_pieces_change_nothing(whole: Taken, cut: Taken) -> None:
    """One pass, and a part each of two that were cut further, gave the same gradient and metrics."""
    assert whole.micro_batches == 1
    assert cut.micro_batches > 2
    assert (
        apart(whole.gradient, cut.gradient) < 2e-6
    )  # the ratio of a whole response adds up the rounding of its tokens
    assert cut.logged == pytest.approx(whole.logged, rel=1e-4, abs=1e-6)


@pytest.fixture
def step(taken: Callable[..., Taken]) -> Step:
    """`step(stage, rows, batch_size, accumulate)`: the gradient of the first optimiser step of a real run."""
    return lambda *args: taken(*args).gradient


@pytest.fixture
def taken(tmp_path: Path) -> Callable[..., Taken]:
    """`taken(stage, rows, batch_size, accumulate, limit, precision)`: the first optimiser step of a real run.

    The rollout is whole; what is learned from it comes in pieces of at most `limit` tokens.
    """

    def run(
        stage: Stage,
        rows: list[Any],
        batch_size: int,
        accumulate: int = 1,
        limit: int | None = None,
        precision: Any = "32-true",
    ) -> Taken:
        torch.manual_seed(0)
        kept = Gradient(limit)
        trainer = Trainer(
            precision=precision,
            accelerator="cpu", max_steps=1, accumulate_grad_batches=accumulate, callbacks=[kept], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path / str(accumulate),
        )  # fmt: skip
        trainer.fit(stage, datamodule=Listed(rows, batch_size))
        assert trainer.global_step == 1
        named = {name: float(value) for name, value in trainer.callback_metrics.items()}
        measured = ("time/", "memory/", "throughput/")
        return Taken(kept.found, kept.micro_batches, {n: v for n, v in named.items() if not n.startswith(measured)})

    return run


@pytest.fixture(scope="session")
def model(tiny_model_folder: Callable[[str], str]) -> ModelConfig:
    """A tiny GPT-2, which knows absolute positions; it stops often, so that responses differ in length."""
    return ModelConfig(tiny_model_folder("gpt2"), stop_tokens=list("abcdefghijklmnopqrstuvwxyzABCDEF0123456789"))


def gradient_of_parts(stage: Stage, parts: Iterable[Any], accumulate: int) -> Tensor:
    """The gradient that Lightning would gather from these parts of a step, for a stage that was run before."""
    assert stage.trainer is not None
    stage.trainer.accumulate_grad_batches = accumulate
    stage.zero_grad()
    given = list(parts)
    assert len(given) == accumulate
    for index, part in enumerate(given):
        (stage.training_step(part, index) / accumulate).backward()
    return gradient(stage)


def padded(rows: RowsT, left: int, right: int) -> RowsT:
    """Further columns before every prompt and behind every response, full of tokens and numbers that mean nothing."""
    wider: dict[str, Any] = {}
    for name, value in rows.tensors().items():
        if value.dim() == 2:
            before = left if name in ("tokens", "prompt_mask") else 0
            after = 0 if name == "prompt_mask" else right
            filling = {torch.bool: False, torch.long: 77}.get(value.dtype, 0.7)
            wider[name] = pad(value, (before, after), value=filling)
    return replace(rows, **wider)


def apart(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the first, which must not be nothing."""
    assert float(one.norm()) > 1e-4
    return float((one - other).norm() / one.norm())

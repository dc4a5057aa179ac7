"""Adam steps in one kernel, as its formula says, unless a user chose how; clipping beside mixed precision stays possible."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.utils.data import DataLoader

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.stages import SupervisedStage
from rlhf_lightning.training.optimizers import adamw, build_optimizer, check_optimizer


def weights_changed(make: Any) -> tuple[nn.Parameter, Any]:
    """A weight after three steps."""
    weight = nn.Parameter(torch.linspace(-1, 1, 300))
    optimizer = build_optimizer(make, [weight])
    for step in range(3):
        (weight * torch.linspace(2, -1, 300)).pow(2 + step).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight, optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_one_kernel_does_what_the_formula_says(kind: Any) -> None:
    make = partial(kind, lr=0.1, weight_decay=0.1)
    expected, fused = weights_changed(partial(make, foreach=False))
    assert not fused
    found, fused = weights_changed(make)
    assert fused
    assert (expected - torch.linspace(-1, 1, 300)).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", [{"fused": False}, {"foreach": True}, {"differentiable": True}])
def test_what_a_user_chose_stays(options: dict[str, bool]) -> None:
    optimizer = build_optimizer(partial(torch.optim.AdamW, **options), [nn.Parameter(torch.ones(2))])
    assert not optimizer.param_groups[0]["fused"]


ROWS = [{"prompt": "say dog", "completion": "dog"}, {"prompt": "please", "completion": "yes"}]


class Rows(LightningDataModule):
    train_rows = ROWS

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.train_rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]


def scheduled_by(scheduler: Any, folder: str, root: Path) -> Trainer:
    stage = SupervisedStage(ModelConfig(folder), optimizer=adamw, lr_scheduler=scheduler, generation=Sampler(2))
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Rows())
    return trainer


def test_a_plateau_lowers_the_learning_rate(tiny_model_folder: Callable[[str], str], tmp_path: Path) -> None:
    wanted = "val/response/truncated"  # all are, in every validation
    scheduler = partial(ReduceLROnPlateau, monitor=wanted, patience=0, factor=0.5)
    trainer = scheduled_by(scheduler, tiny_model_folder("llama"), tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5 * 0.5**3)


def test_a_plateau_of_nothing_is_refused(tiny_model_folder: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ReduceLROnPlateau waits for a metric and does not say for which"):
        scheduled_by(torch.optim.lr_scheduler.ReduceLROnPlateau, tiny_model_folder("llama"), tmp_path)


def test_an_optimizer_that_asks_for_several_losses_is_refused() -> None:
    with pytest.raises(UserError, match="LBFGS asks for the loss several times a step"):
        build_optimizer(torch.optim.LBFGS, [nn.Parameter(torch.ones(2))])


def test_gradients_are_clipped_in_mixed_precision(tiny_model_folder: Callable[[str], str], tmp_path: Path) -> None:
    stage = SupervisedStage(ModelConfig(tiny_model_folder("llama")), optimizer=adamw)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, precision="bf16-mixed", gradient_clip_val=1e-3, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    norms: list[float] = []
    clip = stage.configure_gradient_clipping

    def watched(*args: Any, **options: Any) -> None:
        clip(*args, **options)
        gradients = [p.grad for p in stage.parameters() if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    stage.configure_gradient_clipping = watched  # type: ignore[method-assign]
    trainer.fit(stage, datamodule=Rows())
    assert norms == pytest.approx([1e-3], rel=0.02)
    assert trainer.optimizers[0].param_groups[0]["fused"]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_an_epsilon_that_is_nothing_in_float16_is_refused(kind: Any) -> None:
    half = nn.Parameter(torch.ones(4, dtype=torch.float16))
    line = r"^optimizer.eps is 1e-08, and the weights that train are float16, .* set trainer.precision to bf16-true or 16-mixed"
    with pytest.raises(UserError, match=line):
        check_optimizer(kind, "16-true")  # before weights are loaded
    with pytest.raises(UserError, match=line):
        build_optimizer(kind, [half])
    for precision in ("bf16-true", "16-mixed", "32-true"):
        check_optimizer(kind, precision)
    build_optimizer(partial(kind, eps=1e-3), [half])
    build_optimizer(partial(torch.optim.SGD, lr=0.1, momentum=0.9), [half])

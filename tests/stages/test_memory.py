"""What keeps memory low is really on: recomputed activations, gradients that end with the step, moments in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.loading import LoraOptions, ModelConfig
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.stages import PolicyStage

Folder = Callable[[str], str]


class Prompts(LightningDataModule):
    def train_dataloader(self) -> Any:
        data: Any = ["say dog", "say cat"]
        return DataLoader(data, batch_size=2, collate_fn=list)


class Watch(Callback):
    """Counts how often a block runs while the weights learn, and looks for gradients before and after each step."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.with_gradient: list[tuple[int, int]] = []
        self.runs = 0

    def on_train_start(self, trainer: Trainer, stage: Any) -> None:
        # a part of the block: what is recomputed is its inside
        inside = language_model(stage.policy.model).base_model.layers[0].self_attn
        inside.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def on_train_batch_start(self, trainer: Trainer, stage: Any, batch: Any, index: int) -> None:
        assert not any(p.grad is not None for p in stage.parameters())
        self.runs = 0

    def on_before_optimizer_step(self, trainer: Trainer, stage: Any, optimizer: Any) -> None:
        self.blocks.append(self.runs)
        trained = [p for p in stage.parameters() if p.requires_grad]
        assert trained
        assert all(p.grad is not None for p in trained)

    def on_train_batch_end(self, trainer: Trainer, stage: Any, outputs: Any, batch: Any, index: int) -> None:
        assert all(p.grad is None for p in stage.parameters())


def fitted(config: ModelConfig, root: Path, **options: Any) -> tuple[PolicyStage, Watch]:
    torch.manual_seed(3)
    sgd = partial(torch.optim.SGD, lr=0.05)
    stage = PolicyStage(
        config, PPO(epochs=1, minibatches=1), LengthReward(2, penalty=1.0), generation=Sampler(6), iterations=2,
        **{"optimizer": sgd, **options},
    )  # fmt: skip
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(stage, datamodule=Prompts())
    assert trainer.global_step == 2
    return stage, watch


@pytest.mark.parametrize("kind", ["full", "lora", "lora with a critic beside it"])
def test_checkpointing_runs_each_block_twice_a_step_and_changes_no_number(
    tiny_model_folder: Folder, tmp_path: Path, kind: str
) -> None:
    critic = "separate" if "critic" in kind else "shared"
    lora = None if kind == "full" else LoraOptions(r=4)
    runs, states = [], []
    for recomputed in (False, True):
        config = ModelConfig(tiny_model_folder("llama"), lora=lora, gradient_checkpointing=recomputed)
        stage, watch = fitted(config, tmp_path, critic=critic)
        runs.append(watch.blocks)
        states.append(stage.network.state_dict())
    passes = 2 if critic == "separate" else 1
    assert runs == [[passes, passes], [2 * passes, 2 * passes]]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


def moments(optimizer: Any) -> set[torch.dtype]:
    return {x.dtype for kept in optimizer.state.values() for name, x in kept.items() if name in ("state1", "state2")}


def test_moments_in_eight_bits(tiny_model_folder: Folder, tmp_path: Path) -> None:
    for kind in (bnb.optim.AdamW8bit, bnb.optim.PagedAdamW8bit, bnb.optim.Lion8bit):
        stage, _ = fitted(ModelConfig(tiny_model_folder("llama")), tmp_path, optimizer=partial(kind, lr=1e-3))
        optimizer = stage.trainer.optimizers[0]
        assert type(optimizer) is kind
        assert moments(optimizer) == {torch.uint8, torch.float32}  # those of small weights stay whole
        large = [p for p in stage.parameters() if p.numel() >= 4096]
        assert large
        assert all(optimizer.state[p]["state1"].dtype == torch.uint8 for p in large)


KINDS = {name: kind for name, kind in vars(bnb.optim).items() if isinstance(kind, type) and hasattr(kind, "step")}
MOMENTUM = [name for name in KINDS if name.startswith(("LARS", "PytorchLARS", "SGD"))]
NO_KERNEL = ["AdEMAMix32bit", "PagedAdEMAMix32bit"]


@pytest.fixture
def stage(tiny_model_folder: Folder) -> PolicyStage:
    """Without its model, and with a weight that is large enough for moments in 8 bits."""
    made = PolicyStage(ModelConfig(tiny_model_folder("llama")), PPO(), LengthReward(2, penalty=1.0))
    made.weight = nn.Parameter(torch.ones(2, 4096))
    return made


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(NO_KERNEL)))
def test_an_optimizer_of_bitsandbytes_steps_on_the_cpu(name: str, stage: PolicyStage) -> None:
    options = {"lr": 1e-3, **({"momentum": 0.9} if name in MOMENTUM else {})}
    stage.make_optimizer = partial(KINDS[name], **options)
    state = torch.get_rng_state()
    optimizer: Any = stage.configure_optimizers()
    assert torch.equal(torch.get_rng_state(), state)
    (stage.weight * torch.linspace(-1, 1, 4096)).sum().backward()  # type: ignore[operator]
    before = stage.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(stage.weight, before)  # type: ignore[arg-type]


def test_moments_in_eight_bits_come_back_from_a_file_bit_for_bit(stage: PolicyStage, tmp_path: Path) -> None:
    stage.make_optimizer = partial(bnb.optim.AdamW8bit, lr=1e-2)

    def stepped(optimizer: Any, seed: int) -> torch.Tensor:
        stage.weight.grad = torch.randn(2, 4096, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        return stage.weight.detach().clone()  # type: ignore[operator]

    optimizer: Any = stage.configure_optimizers()
    middle = stepped(optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    expected = stepped(optimizer, 2)
    for restored in (True, False):
        stage.weight.data.copy_(middle)  # type: ignore[operator]
        again: Any = stage.configure_optimizers()
        if restored:
            again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert torch.equal(stepped(again, 2), expected) == restored


@pytest.mark.parametrize("name", NO_KERNEL)
def test_one_that_cannot_step_on_the_cpu_is_refused_before_the_run(name: str, stage: PolicyStage) -> None:
    stage.make_optimizer = partial(KINDS[name], lr=1e-3)
    with pytest.raises(
        UserError, match=rf"{name} of bitsandbytes cannot step on cpu in float32 \(.*; use another, such as"
    ):
        stage.configure_optimizers()
    stage.make_optimizer = partial(bnb.optim.SGD8bit, lr=1e-3)
    with pytest.raises(UserError, match="the optimizer cannot be made: SGD without momentum is not supported!"):
        stage.configure_optimizers()

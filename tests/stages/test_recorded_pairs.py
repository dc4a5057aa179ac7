"""Recorded pairs that are learned from in one step pass through the policy once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.stages import PolicyStage


class Pairs(LightningDataModule):
    train_rows: ClassVar[list[dict[str, str]]] = [
        {"prompt": "say dog", "chosen": "dog", "rejected": "a cat"},
        {"prompt": "say cat", "chosen": "cat", "rejected": "no"},
        {"prompt": "please", "chosen": "yes", "rejected": "no dog"},
        {"prompt": "thank you", "chosen": "a dog", "rejected": "a cat and a dog"},
    ]

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_rows, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]


class Reading(DPO):
    """DPO that asks for what the policy said before the step."""

    prepare_reads_logprobs: ClassVar[bool] = True


class Watched(PolicyStage):
    """Counts the policy's passes in training, and keeps what is logged."""

    passes = 0

    def metrics_after_batch(self) -> dict[str, float]:
        self.__dict__.setdefault("logged", []).append(super().metrics_after_batch())
        return {}

    def on_train_start(self) -> None:
        super().on_train_start()
        self.network.register_forward_hook(lambda *_: setattr(self, "passes", self.passes + 1))


def training(root: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, **options,
    )  # fmt: skip


def fitted(algorithm: DPO, folder: str, root: Path, accumulate: int = 1) -> Watched:
    torch.manual_seed(3)
    stage = Watched(ModelConfig(folder), algorithm, optimizer=partial(torch.optim.SGD, lr=0.5))
    trainer = training(root, accumulate_grad_batches=accumulate)
    trainer.fit(stage, datamodule=Pairs(2 // accumulate))
    assert trainer.global_step == 4 * algorithm.epochs
    return stage


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_pass_a_part_gives_the_weights_and_the_metrics_of_two(folder: str, tmp_path: Path, accumulate: int) -> None:
    once, twice = (fitted(kind(), folder, tmp_path / kind.__name__, accumulate) for kind in (DPO, Reading))
    assert once.passes == 4 * accumulate
    assert twice.passes == 4 * (accumulate + 1)
    for name, value in twice.network.state_dict().items():
        assert torch.equal(once.network.state_dict()[name], value), name
    logged = [[values for values in stage.__dict__["logged"] if values] for stage in (once, twice)]
    assert len(logged[0]) == len(logged[1]) == 4
    for found, wanted in zip(*logged, strict=True):
        assert found.keys() == wanted.keys()
        for name in ("kl/reference", "loss/policy", "preference/margin", "response/length"):
            assert found[name] == pytest.approx(wanted[name], abs=1e-5), name
        assert found["kl/update"] == 0
    assert abs(logged[0][-1]["kl/reference"]) > 1e-3, "the policy has to have moved"


def test_several_steps_on_the_same_pairs_are_held_against_the_policy_before_the_first(
    folder: str, tmp_path: Path
) -> None:
    stage = fitted(DPO(epochs=2), folder, tmp_path)
    assert stage.passes == 4 * (1 + 2)
    assert all(abs(values["kl/update"]) > 1e-5 for values in stage.__dict__["logged"] if values)


def test_a_run_that_begins_anew_has_a_reference_of_its_own(
    tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    fitted(DPO(), tiny_model_folder("qwen2"), tmp_path / "earlier")
    anew, alone = (fitted(DPO(), tiny_model_folder("llama"), tmp_path / name) for name in ("earlier", "alone"))
    for name, value in alone.network.state_dict().items():
        assert torch.equal(anew.network.state_dict()[name], value), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_run_that_goes_on_elsewhere_finds_the_same_reference(folder: str, tmp_path: Path, precision: str) -> None:
    known = []
    for root, checkpoint in ((tmp_path / "here", None), (tmp_path / "there", tmp_path / "last.ckpt")):
        stage = PolicyStage(ModelConfig(folder), DPO(), generation=Sampler(temperature=0.5))
        trainer = training(root, max_steps=1 + len(known), precision=precision)
        trainer.fit(stage, datamodule=Pairs(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        known.append(stage.collector.reference.cached)  # type: ignore[union-attr]
    assert known[0].keys() == known[1].keys()
    for name, value in known[0].items():
        assert torch.equal(known[1][name], value), name

"""True half precision: weights are bfloat16, and what losses are made of stays float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig, load_reward_model
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.stages import PolicyStage, RewardStage, SupervisedStage

OPTIMIZER = partial(torch.optim.SGD, lr=0.5)
PAIRS = [
    {"prompt": "say dog", "chosen": "dog", "rejected": "a cat", "completion": "dog"},
    {"prompt": "please", "chosen": "yes", "rejected": "no dog", "completion": "yes"},
]


class Rows(LightningDataModule):
    train_rows = PAIRS

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]


def fitted(stage: Any, root: Path) -> list[Any]:
    """The batches that the stage learned from."""
    batches: list[Any] = []
    backward_loss = stage.training_step

    def watched(batch: Any, batch_idx: int) -> Any:
        batches.append(batch)
        assert torch.get_default_dtype() == torch.float32
        return backward_loss(batch, batch_idx)

    stage.training_step = watched
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, precision="bf16-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Rows())
    assert {parameter.dtype for parameter in stage.network.parameters()} == {torch.bfloat16}
    return batches


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


@pytest.mark.parametrize(
    "algorithm",
    [PPO(epochs=1, minibatches=1), REINFORCE(responses_per_prompt=2), DPO()],
    ids=lambda a: type(a).__name__,
)
def test_a_rollout_keeps_its_numbers_in_float32(algorithm: Algorithm, folder: str, tmp_path: Path) -> None:
    config, scores = ModelConfig(folder, dtype="bfloat16"), str(tmp_path / "scores")
    load_reward_model(ModelConfig(folder)).save_pretrained(scores)
    reward = ModelReward(scores, tokenizer=folder)
    stage = PolicyStage(config, algorithm, reward, "full", generation=Sampler(8), iterations=1, optimizer=OPTIMIZER)
    (batch,) = fitted(stage, tmp_path)
    floats = [value for value in batch.tensors().values() if value.is_floating_point()]
    assert len(floats) > 3
    assert {value.dtype for value in floats} == {torch.float32}
    assert (batch.logprobs != batch.logprobs.bfloat16()).any(), "they went through bfloat16"


@pytest.mark.parametrize("reference", ["full", "nf4"])
def test_the_reference_is_a_copy_of_the_policy_as_it_is_converted(reference: Any, folder: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"generation": Sampler(8), "iterations": 1, "optimizer": OPTIMIZER}
    stage = PolicyStage(ModelConfig(folder), REINFORCE(responses_per_prompt=2), LengthReward(2), reference, **options)
    fitted(stage, tmp_path)
    assert stage.collector is not None
    copy = stage.collector.reference._model  # type: ignore[attr-defined]
    floats = {value.dtype for value in copy.parameters() if value.is_floating_point()}
    assert floats == {torch.bfloat16}


@pytest.mark.parametrize(
    "stage",
    [
        lambda folder: PolicyStage(ModelConfig(folder), DPO(), optimizer=OPTIMIZER),
        lambda folder: RewardStage(ModelConfig(folder), optimizer=OPTIMIZER),
        lambda folder: SupervisedStage(ModelConfig(folder), optimizer=OPTIMIZER),
    ],
    ids=["offline dpo", "reward model", "supervised"],
)
def test_recorded_rows_are_learned_from(stage: Callable[[str], Any], folder: str, tmp_path: Path) -> None:
    made = stage(folder)
    assert len(fitted(made, tmp_path)) == 1
    assert all(parameter.isfinite().all() for parameter in made.network.parameters())

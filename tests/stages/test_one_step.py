"""One optimiser step of a policy: the same however it is accumulated, on numbers taken at the sampling temperature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.types import Batch


class Prompts(LightningDataModule):
    def train_dataloader(self) -> Any:
        data: Any = ["say dog", "say cat", "please", "thank you"]
        return DataLoader(data, batch_size=4, collate_fn=list)


class Watched(PolicyStage):
    """Keeps what the policy says of the first part before it has moved, beside what was recorded."""

    def training_step(self, batch: Batch, index: int) -> torch.Tensor | None:
        if index == 0:
            with torch.no_grad():
                self.first = self.policy(batch).logprobs, batch  # type: ignore[misc]
        return super().training_step(batch, index)


def fitted(folder: str, root: Path, accumulate: int, iterations: int = 1) -> Watched:
    torch.manual_seed(3)
    stage = Watched(
        ModelConfig(folder),
        REINFORCE(responses_per_prompt=2),
        LengthReward(2, penalty=1.0),
        "full",
        generation=Sampler(8, temperature=0.7),
        iterations=iterations,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Prompts())
    assert trainer.global_step == iterations
    return stage


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


def test_a_step_in_parts_is_the_step_at_once(folder: str, tmp_path: Path) -> None:
    whole, parts = (fitted(folder, tmp_path, accumulate) for accumulate in (1, 3))
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(parts.network.state_dict()[name], value, rtol=0, atol=1e-5)
    assert whole.first[1].mask.shape[0] == 8
    assert parts.first[1].mask.shape[0] == 3


def test_before_the_first_step_policy_rollout_and_reference_say_the_same(folder: str, tmp_path: Path) -> None:
    stage = fitted(folder, tmp_path, accumulate=1)
    said, batch = stage.first
    assert batch.mask.any()
    torch.testing.assert_close(said, batch.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.reference_logprobs, batch.logprobs, rtol=0, atol=1e-5)

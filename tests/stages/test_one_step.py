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
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        data: Any = ["say dog", "say cat", "please", "thank you"]
        return DataLoader(data, batch_size=self.batch_size, collate_fn=list)


class Watched(PolicyStage):
    """Keeps what the policy says of the first part before it has moved, beside what was recorded."""

    def training_step(self, batch: Batch, index: int) -> torch.Tensor | None:
        if index == 0:
            with torch.no_grad():
                self.first = self.policy(batch).logprobs, batch  # type: ignore[misc]
        return super().training_step(batch, index)


def fitted(folder: str, root: Path, accumulate: int, batch_size: int = 4, iterations: int | None = 1) -> Watched:
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
    trainer.fit(stage, datamodule=Prompts(batch_size))
    assert trainer.global_step == (iterations or 1)
    return stage


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


@pytest.mark.parametrize("iterations", [1, None])  # None: a pass over the prompts, which is one rollout
@pytest.mark.parametrize(("accumulate", "batch_size", "rows"), [(3, 2, 3), (2, 2, 4), (4, 1, 2)])
def test_batches_of_a_rollout_are_joined_into_the_step_at_once(
    accumulate: int, batch_size: int, rows: int, iterations: int | None, folder: str, tmp_path: Path
) -> None:
    whole = fitted(folder, tmp_path, 1)
    joined = fitted(folder, tmp_path, accumulate, batch_size, iterations)
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(joined.network.state_dict()[name], value, rtol=0, atol=1e-5)
    assert whole.first[1].mask.shape[0] == 8
    assert joined.first[1].mask.shape[0] == rows


def test_before_the_first_step_policy_rollout_and_reference_say_the_same(folder: str, tmp_path: Path) -> None:
    stage = fitted(folder, tmp_path, accumulate=1)
    said, batch = stage.first
    assert batch.mask.any()
    torch.testing.assert_close(said, batch.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.reference_logprobs, batch.logprobs, rtol=0, atol=1e-5)

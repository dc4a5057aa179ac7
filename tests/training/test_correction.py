"""Advantages are weighted once a rollout by the ratio of trainer to generator, where these are two engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.training.correction import Correction
from rlhf_lightning.types import Batch, Generated, GenerationRequest

RATIOS = torch.tensor([[0.25, 1.0, 4.0], [1.5, 3.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def batch_of(ratios: Tensor = RATIOS) -> Batch:
    """Two rows whose trainer is `ratios` times as sure as their generator; the last token of the second is padding."""
    logprobs = torch.full((2, 3), -2.0)
    return Batch(
        tokens=torch.zeros(2, 4, dtype=torch.long), prompt_mask=torch.ones(2, 1, dtype=torch.bool), mask=MASK,
        groups=torch.arange(2), truncated=torch.zeros(2, dtype=torch.bool), logprobs=logprobs, reference_logprobs=None,
        rewards=torch.zeros(2), values=None, generator_logprobs=logprobs - ratios.log(),
        advantages=torch.tensor([[1.0, -1.0, 2.0], [3.0, -3.0, 0.0]]), returns=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("correction", "expected"),
    [
        (Correction(), [[0.25, 1.0, 2.0], [1.5, 2.0, 1.0]]),
        (Correction(cap=10.0), [[0.25, 1.0, 4.0], [1.5, 3.0, 1.0]]),
        (Correction(drop_outside=(0.5, 3.5)), [[0.0, 1.0, 0.0], [1.5, 2.0, 1.0]]),
        (Correction(level="sequence", cap=4.0), [[1.0, 1.0, 1.0], [4.0, 4.0, 1.0]]),
        (Correction(level="sequence", cap=4.0, drop_outside=(0.5, 4.4)), [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]),
    ],
)
def test_weights_by_hand(correction: Correction, expected: list[list[float]]) -> None:
    batch = batch_of()
    torch.testing.assert_close(correction.weights(batch), torch.tensor(expected))
    corrected, metrics = correction.apply(batch)
    assert batch.advantages is not None
    torch.testing.assert_close(corrected.advantages, batch.advantages * torch.tensor(expected))
    assert metrics["generator/weight"] == pytest.approx(float(torch.tensor(expected)[MASK].mean()))
    assert torch.equal(corrected.mask, batch.mask)


@pytest.mark.parametrize(
    "options", [{"cap": 0.0}, {"cap": math.inf}, {"drop_outside": (2.0, 1.0)}, {"drop_outside": (-1.0, 1.0)}]
)
def test_bad_options_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"correction\.\w+ is .*; set it to"):
        Correction(**options)


@dataclass
class Remote(Sampler):
    """The sampler, as an engine that believes its tokens to be more probable than the trainer does."""

    separate_engine: ClassVar[bool] = True

    def generate(self, request: GenerationRequest) -> Generated:
        generated = super().generate(request)
        assert generated.logprobs is not None
        return replace(generated, logprobs=generated.logprobs + 0.3)


class Rollouts(Callback):
    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_rollout_end(self, trainer: Trainer, stage: PolicyStage, rollout: Batch) -> None:
        self.batches.append(rollout)


class Prompts(LightningDataModule):
    def train_dataloader(self) -> Any:
        data: Any = ["say dog", "say cat", "please", "thank you"]
        return DataLoader(data, batch_size=4, collate_fn=list)


def collected(
    folder: str, root: Path, generation: Sampler, algorithm: Algorithm, correction: Correction | None = None
) -> tuple[Batch, PolicyStage]:
    """The first rollout of a run, and its stage."""
    torch.manual_seed(3)
    stage = PolicyStage(
        ModelConfig(folder), algorithm, LengthReward(2), "full", generation=generation,
        optimizer=partial(torch.optim.SGD, lr=0.1), correction=correction,
    )  # fmt: skip
    noted = Rollouts()
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, callbacks=[noted],
    )  # fmt: skip
    trainer.fit(stage, datamodule=Prompts())
    return noted.batches[0], stage


def test_an_engine_of_its_own_is_corrected(tiny_model_folder: Callable[[str], str], tmp_path: Path) -> None:
    folder = tiny_model_folder("llama")
    local, _ = collected(folder, tmp_path, Sampler(6), GRPO(responses_per_prompt=4))
    remote, stage = collected(folder, tmp_path, Remote(6), GRPO(responses_per_prompt=4))
    assert local.generator_logprobs is None
    assert remote.generator_logprobs is not None
    assert local.advantages is not None
    assert remote.advantages is not None
    assert local.advantages.abs().sum() > 0
    torch.testing.assert_close(remote.logprobs, local.logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(remote.advantages, local.advantages * math.exp(-0.3), rtol=1e-4, atol=1e-5)
    assert stage.collector is not None
    assert stage.collector.metrics["generator/log_ratio"] == pytest.approx(0.3, abs=1e-4)
    assert stage.collector.metrics["generator/weight"] == pytest.approx(math.exp(-0.3), abs=1e-4)


def test_a_correction_without_advantages_or_without_an_engine_is_refused(
    tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = tiny_model_folder("llama")
    with pytest.raises(UserError, match=r"model\.correction is set; Sampler generates with the model that trains"):
        collected(folder, tmp_path, Sampler(6), GRPO(), Correction())
    with pytest.raises(UserError, match=r"model\.correction is set, and the algorithm has no advantages"):
        collected(folder, tmp_path, Remote(6), DPO(responses_per_prompt=2), Correction())
    batch, _ = collected(folder, tmp_path, Remote(6), DPO(responses_per_prompt=2))
    assert batch.generator_logprobs is not None

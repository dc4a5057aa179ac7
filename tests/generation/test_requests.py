"""A generator reads one request and returns one object, so that an engine without the model's weights here fits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

import rlhf_lightning
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.generation import decoding_state
from rlhf_lightning.generation.base import Generated, GenerationRequest, Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.models.padding import right_padded
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import PolicyStage

PACKAGE = str(Path(rlhf_lightning.__file__).parent)


@dataclass
class Server(Generator):
    """Answers token ids with token ids, as a server does; it knows no weights."""

    def generate(self, request: GenerationRequest) -> Generated:
        ids = [prompt[-2:] for prompt in request.prompt_ids() for _ in range(request.params.responses_per_prompt)]
        tokens, mask = right_padded(ids, request.params.pad_token)
        return Generated(tokens, mask, torch.zeros(len(ids), dtype=torch.bool), None)


class Prompts(LightningDataModule):
    def train_dataloader(self) -> Any:
        data: Any = ["say dog", "say cat", "please", "thank you"]
        return DataLoader(data, batch_size=4, collate_fn=list)


def fitted(folder: str, root: Path, generation: Generator) -> PolicyStage:
    torch.manual_seed(3)
    algorithm = REINFORCE(responses_per_prompt=2)
    stage = PolicyStage(ModelConfig(folder), algorithm, LengthReward(2), generation=generation, iterations=1)
    Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root,
    ).fit(stage, datamodule=Prompts())  # fmt: skip
    return stage


def test_an_engine_without_weights_fits(tiny_model_folder: Callable[[str], str], tmp_path: Path) -> None:
    stage = fitted(tiny_model_folder("llama"), tmp_path, Server(4))
    encoder = stage.text.encoder
    assert stage.collector is not None
    rows = [{"prompt": "say dog"}, {"prompt": "please"}]
    completions = stage.roles.response_generator.generate(rows, 1, Randomness(0, 0, (0, 1)))
    assert completions.responses == [encoder.tokenizer.decode(encoder.prompt(row["prompt"])[-2:]) for row in rows]
    assert completions.truncated.all()
    lengths = [min(2, len(encoder.prompt(text))) for text in ("say dog", "say cat", "please", "thank you")]
    assert stage.collector.metrics["response/length"] == sum(lengths) / 4


def test_seven_calls_lead_from_the_loader_to_a_sampled_token(
    tiny_model_folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[list[str]] = []
    sample = decoding_state.sample

    def noting(*args: Any) -> Any:
        frame, names = sys._getframe(1), ["sample"]
        while frame is not None and frame.f_code.co_name != "__iter__":
            names += [frame.f_code.co_name] if frame.f_code.co_filename.startswith(PACKAGE) else []
            frame = frame.f_back  # type: ignore[assignment]
        paths.append(names[::-1])
        return sample(*args)

    monkeypatch.setattr(decoding_state, "sample", noting)
    fitted(tiny_model_folder("llama"), tmp_path, Sampler(4))
    assert paths[-1] == ["collect", "request", "generate", "generate", "run", "extend", "sample"]

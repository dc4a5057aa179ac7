"""Top-p, top-k and min-p exclude the tokens that transformers excludes; log-probabilities stay those of the full distribution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.sampling import sample, truncation
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.types import GenerationRequest, SamplingParams

OPTIONS: list[dict[str, Any]] = [
    {"top_p": 0.7},
    {"top_p": 1e-6},
    {"top_k": 4},
    {"top_k": 1000},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_p": 0.8, "top_k": 7, "min_p": 0.05},
]


def by_transformers(logits: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Probabilities after the warpers in the order of `generate`."""
    kinds: Any = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    for name, kind in kinds.items():
        logits = kind(options[name])(None, logits) if name in options else logits
    return logits.softmax(-1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_distribution_is_that_of_transformers_warpers(options: dict[str, Any]) -> None:
    logits = 2 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    truncate = truncation(SamplingParams(1, 0.7, [], 0, **options))
    expected = by_transformers(logits / 0.7, options)
    uniforms, count = (torch.arange(20_000) + 0.5) / 20_000, 20_000
    for row in range(len(logits)):
        chosen, logprobs = sample(logits[row].expand(count, -1), 0.7, uniforms, truncate)
        frequencies = torch.bincount(chosen, minlength=40) / count
        torch.testing.assert_close(frequencies, expected[row], atol=2 / count, rtol=0)
        full = (logits[row] / 0.7).log_softmax(-1)
        torch.testing.assert_close(logprobs, full[chosen])


def test_nothing_to_truncate_samples_what_it_sampled() -> None:
    assert truncation(SamplingParams(1, 1.0, [], 0, top_p=1.0, top_k=0, min_p=0.0)) is None


@pytest.mark.parametrize("options", [{"top_p": 0.6}, {"top_k": 2}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize(
    "engine", [Sampler, lambda *a, **k: Sampler(*a, continuous_batching=False, **k), TransformersGenerate]
)
def test_engines_sample_what_the_warpers_leave(engine: Callable[..., Generator], options: dict[str, Any]) -> None:
    config = LlamaConfig(vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(20)
    count, prompt = 3000, torch.tensor([[1, 2]])
    generator = engine(1, temperature=1.5, **options)
    params = generator.sampling_params([8], 0, count)
    generated = generator.generate(
        GenerationRequest(prompt, prompt > 0, params, Randomness(0, 0, tuple(range(count))), model)
    )
    with torch.no_grad():
        logits = model(prompt).logits[0, -1:] / 1.5
    expected = by_transformers(logits, options)[0]
    frequencies = torch.bincount(generated.tokens[:, 0], minlength=9) / count
    assert not frequencies[expected == 0].any()
    assert int((expected == 0).sum()) > 0
    assert float((frequencies - expected).abs().max()) < 4 * (0.25 / count) ** 0.5
    if generated.logprobs is not None:
        full = logits.log_softmax(-1)[0]
        torch.testing.assert_close(generated.logprobs[:, 0], full[generated.tokens[:, 0]], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.2}, "top_p is 1.2"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"truncate_rollouts": True}, "nothing truncates"),
        ({"top_p": 0.9, "temperature": 0.0}, "temperature is 0"),
    ],
)
@pytest.mark.parametrize("kind", [Sampler, TransformersGenerate])
def test_options_that_cannot_be_are_refused_in_a_line(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        kind(**options)
    assert "\n" not in str(error.value)


class Prompts(LightningDataModule):
    def train_dataloader(self) -> Any:
        return prompts()

    def val_dataloader(self) -> Any:
        return prompts()


def prompts() -> Any:
    data: Any = ["say dog", "say cat", "please", "thank you"]
    return DataLoader(data, batch_size=4, collate_fn=list)


def fitted(folder: str, root: Path, **options: Any) -> tuple[PolicyStage, list[int]]:
    """The stage, and the number of distinct first tokens in the rollout and in the validation after it."""
    distinct = []

    class Watched(PolicyStage):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            distinct.append(len(batch.tokens[:, batch.prompt_mask.shape[1]].unique()))
            return super().training_step(batch, index)

        def measure(self, rows: Any) -> None:
            super().measure(rows)
            distinct.append(len({sample["response"][:1] for sample in self.validation.held_out.samples_of_batches[-1]}))

    torch.manual_seed(3)
    generation = Sampler(1, **options)
    stage = Watched(
        ModelConfig(folder), REINFORCE(responses_per_prompt=32), LengthReward(2), generation=generation, iterations=1
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(stage, datamodule=Prompts())
    return stage, distinct


def test_training_on_a_truncated_distribution_needs_a_word(
    tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = tiny_model_folder("llama")
    with pytest.raises(UserError, match=r"generation has top_k 1; .*bias.* set generation.truncate_rollouts to false"):
        fitted(folder, tmp_path, top_k=1)
    _, everywhere = fitted(folder, tmp_path, top_k=1, truncate_rollouts=True)
    _, validation = fitted(folder, tmp_path, top_k=1, truncate_rollouts=False)
    assert everywhere[0] <= 4  # one first token for each of four prompts
    assert validation[0] > 20
    assert validation[1] <= 4

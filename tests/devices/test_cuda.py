"""On a GPU: `pytest -m gpu`. What these tests say is made sure of without one by `CUDA_TESTS_ON=cpu pytest -m gpu`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from leavings import column, equal, metrics, weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_lightning.__main__ import main
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.quantization import quantize_
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Rows

DEVICE = os.environ.get("CUDA_TESTS_ON", "cuda")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA refuses to be deterministic
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]

Folder = Callable[[str], str]
DTYPES = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far two ways to the same log-probability may lie apart, in nats."""
SMALL = ["--data.size", "16", "--data.validation_size", "4", "--data.batch_size", "8", "--trainer.max_epochs", "1"]
ROLLOUTS = [*SMALL, "--model.iterations", "2", "--trainer.val_check_interval", "1.0"]
PPO = ["--config", "ppo.yaml", *ROLLOUTS]
RUNS = {
    "sft": ["--config", "sft.yaml", *SMALL],
    "reward": ["--config", "reward.yaml", *SMALL],
    "ppo": PPO,
    "ppo, a critic of its own, bf16-mixed": [*PPO, "--model.critic", "separate", "--trainer.precision", "bf16-mixed"],
    "ppo, recomputed, in pieces": [
        *PPO,
        *("--model.policy.gradient_checkpointing", "true", "--model.policy.max_tokens_per_batch", "128"),
    ],
    "ppo, lora, bf16-true": [*PPO, "--config", "lora.yaml", "--trainer.precision", "bf16-true"],
    "ppo, qlora, 8-bit AdamW": [
        *PPO,
        *("--config", "qlora.yaml", "--model.optimizer", "bitsandbytes.optim.AdamW8bit"),
    ],
    "ppo, paged AdamW": [*PPO, "--model.optimizer", "bitsandbytes.optim.PagedAdamW8bit"],
    "grpo, int8 reference": ["--config", "grpo.yaml", *ROLLOUTS, "--model.reference", "int8"],
    "reinforce": ["--config", "reinforce.yaml", *ROLLOUTS],
    "dpo, transformers' generate": ["--config", "dpo.yaml", *ROLLOUTS, "--model.generation", "TransformersGenerate"],
    "dpo_offline": ["--config", "dpo_offline.yaml", *SMALL],
}


@pytest.fixture(params=["llama", "gpt_neox"])
def folder(request: pytest.FixtureRequest, tiny_model_folder: Folder) -> str:
    return tiny_model_folder(request.param)


def policy(folder: str, dtype: torch.dtype = torch.float32, **options: Any) -> Policy:
    """On the device; its log-probabilities are far from uniform."""
    model = load_causal_lm(ModelConfig(folder, **options))
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            parameter.data.mul_(4)
    return Policy(model.to(DEVICE, dtype).eval())


def prompts() -> tuple[Tensor, Tensor]:
    """Three of 9, 5 and 1 tokens."""
    tokens = torch.randint(3, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) >= torch.tensor([[0], [4], [8]])
    return (tokens * mask).to(DEVICE), mask.to(DEVICE)


def generated(policy: Policy, sampler: Any, temperature: float = 1.0, responses: int = 2) -> Any:
    randomness = Randomness(1, 0, tuple(range(3 * responses)))
    params = sampler.sampling_params([2], 0, responses, temperature)
    tokens, mask = prompts()
    return sampler.generate(policy.request(prompts=tokens, prompt_mask=mask, params=params, randomness=randomness))


def rows(found: Any) -> Rows:
    tokens, mask = (x.repeat_interleave(2, 0) for x in prompts())
    groups = torch.arange(3, device=DEVICE).repeat_interleave(2)
    return Rows(torch.cat([tokens, found.tokens], 1), mask, found.mask, groups, ~found.mask[:, -1])


@pytest.mark.parametrize("static", [True, False])
def test_greedy_tokens_are_those_of_transformers(folder: str, static: bool) -> None:
    sampler = Sampler(12, max_batch_size=2, continuous_batching=not static)
    ours, theirs = (generated(policy(folder), one, 0.0, 1) for one in (sampler, TransformersGenerate(12)))
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.mask, theirs.mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_recorded_while_writing_is_what_a_pass_says(folder: str, dtype: torch.dtype) -> None:
    response_generator = policy(folder, dtype)
    found = generated(response_generator, Sampler(12, max_batch_size=4))
    said = response_generator(rows(found)).logprobs.detach()
    assert float((found.logprobs - said)[found.mask].abs().max()) < DTYPES[dtype]
    assert float(said[found.mask].std()) > 0.3


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_rows_have_the_gradients_of_padded_ones(folder: str, dtype: torch.dtype) -> None:
    found = rows(generated(policy(folder), Sampler(12)))
    gradients = []
    for pack in (True, False):
        learner = policy(folder, dtype, pack=pack)
        learner(found).logprobs.sum().backward()
        gradients.append(torch.cat([p.grad.float().flatten() for p in learner.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < DTYPES[dtype]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_say_on_the_device_what_they_say_on_the_cpu(kind: Any, tiny_model_folder: Folder) -> None:
    tokens = prompts()[0]
    here, there = (load_causal_lm(ModelConfig(tiny_model_folder("llama"))).eval() for _ in range(2))
    with torch.no_grad():
        plain = here(tokens.cpu()).logits
        expected = quantize_(here, kind)(tokens.cpu()).logits
        found = quantize_(there.to(DEVICE), kind)(tokens).logits.cpu()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert not torch.equal(expected, plain)


def test_an_adapter_learns_on_a_base_of_four_bits(tiny_model_folder: Folder) -> None:
    config = ModelConfig(tiny_model_folder("llama"), quantization="nf4", lora=LoraOptions(r=2))
    learner = Policy(load_causal_lm(config).to(DEVICE))
    learner(rows(generated(learner, Sampler(6)))).logprobs.sum().backward()
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.requires_grad}
    assert gradients
    assert all("lora" in name for name in gradients)
    assert sum(float(x.abs().sum()) for x in gradients.values() if x is not None) > 0


def run(folder: Path, *words: str) -> None:
    where = ["--trainer.accelerator", "gpu" if DEVICE == "cuda" else DEVICE, "--trainer.devices", "1"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(folder)]
    assert main(["fit", *words, *where, *quiet]) == 0


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_an_export_that_transformers_loads(name: str, tmp_path: Path) -> None:
    run(tmp_path, *RUNS[name])
    rows = metrics(tmp_path)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    assert all(bool(x.isfinite().all()) for x in weights(tmp_path / "export").values())
    if name.startswith("ppo"):
        assert column(tmp_path, "policy/ratio_first") == pytest.approx([1, 1], abs=1e-3 if "bf16" not in name else 0.3)
    if name in ("sft", "dpo_offline"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "export")


@pytest.mark.parametrize("name", ["ppo", "ppo, qlora, 8-bit AdamW", "dpo_offline"])
def test_a_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    (tmp_path / "often.yaml").write_text(
        "trainer: {callbacks: [{class_path: Checkpoints, init_args: {every_n_steps: 1, keep: 100}}]}"
    )
    words = [*RUNS[name], "--config", str(tmp_path / "often.yaml"), "--trainer.deterministic", "true"]
    try:
        run(whole, *words)
        run(resumed, *words, "--ckpt_path", str(whole / "checkpoints/step-1.ckpt"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal(weights(resumed / "export"), weights(whole / "export"))

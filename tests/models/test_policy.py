"""Log-probabilities, entropy and values of responses: against transformers' own logits, whatever pads or surrounds a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

import rlhf_lightning.models.logprobs as logprobs_module
from rlhf_lightning.models.critics import SeparateCritic, SharedCritic
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.logprobs import token_scores
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.types import Rows
from tests.conftest import ARCHITECTURES

Folder = Callable[[str], str]
SCALED: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
    "gemma4": {"final_logit_softcapping": 2.0, "vision_config": None, "audio_config": None},
    "falcon_h1": {"lm_head_multiplier": 3.0, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
}
"""Architectures whose logits are not the output of the head, and the number that says so."""


@pytest.fixture
def rows() -> Rows:
    """Four rows of 2 to 5 prompt tokens and 6, 1, 4 and 0 response tokens."""
    generator = torch.Generator().manual_seed(0)
    prompt_mask = torch.arange(5)[None] >= torch.tensor([0, 3, 1, 2])[:, None]
    mask = torch.arange(6)[None] < torch.tensor([6, 1, 4, 0])[:, None]
    tokens = torch.randint(3, 280, (4, 11), generator=generator)
    return Rows(tokens, prompt_mask, mask, torch.arange(4), mask[:, 5])


def loaded(folder: str) -> Any:
    return load_causal_lm(ModelConfig(folder))


def alone(model: Any, rows: Rows, row: int, temperature: float = 1.0) -> Categorical:
    """What transformers says of each response token of a row without any padding."""
    width = rows.prompt_mask.shape[1]
    ids = torch.cat([rows.tokens[row, :width][rows.prompt_mask[row]], rows.tokens[row, width:][rows.mask[row]]])
    logits = model(ids[None]).logits[0, :-1].float() / temperature
    return Categorical(logits=logits[len(logits) - int(rows.mask[row].sum()) :])


def responses(rows: Rows, row: int) -> Tensor:
    return rows.tokens[row, rows.prompt_mask.shape[1] :][rows.mask[row]]


def gradients(module: nn.Module, total: Tensor) -> Tensor:
    module.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropy_are_those_of_the_distribution(
    tiny_model_folder: Folder, rows: Rows, arch: str, temperature: float
) -> None:
    model = loaded(tiny_model_folder(arch))
    found = Policy(model, temperature=temperature)(rows, entropy=True)
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32
    for row in range(3):
        expected = alone(model, rows, row, temperature)
        length = int(rows.mask[row].sum())
        wanted = expected.log_prob(responses(rows, row))
        torch.testing.assert_close(found.logprobs[row, :length], wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.entropy[row, :length], expected.entropy(), atol=1e-5, rtol=0)
    assert not found.logprobs[~rows.mask].any()
    assert not found.entropy[~rows.mask].any()
    assert Policy(model)(rows).entropy is None


@pytest.mark.parametrize("size", [1, 3, 4, 11])
@pytest.mark.parametrize("entropy", [True, False])
def test_a_head_in_chunks_is_the_head(
    tiny_model_folder: Folder, rows: Rows, monkeypatch: pytest.MonkeyPatch, size: int, entropy: bool
) -> None:
    model = loaded(tiny_model_folder("llama"))
    found = []
    for elements in (2**24, size * model.config.vocab_size):
        monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", elements)
        scores = token_scores(model, rows, 0.7, entropy)
        total = (scores.logprobs * torch.linspace(1, 2, 6)).sum()
        total = total if scores.entropy is None else total + (scores.entropy * torch.linspace(3, 1, 6)).sum()
        found.append((scores.logprobs.detach(), scores.entropy, gradients(model, total)))
    whole, chunked = found
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(chunked[1], whole[1], atol=1e-6, rtol=0) if entropy else None
    assert float((chunked[2] - whole[2]).norm() / whole[2].norm()) < 1e-6


def test_logits_exist_only_for_a_chunk_of_response_tokens(
    tiny_model_folder: Folder, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tiny_model_folder("llama"))
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, output: seen.append(len(output)))
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", 4 * model.config.vocab_size + 1)
    token_scores(model, rows)
    assert seen == [4, 4, 3]  # 6 + 1 + 4 tokens


def nested(described: dict[str, Any]) -> dict[str, Any]:
    """The description of a model whose language model is one of several parts."""
    sizes = {"head_dim": 8, "global_head_dim": 8, "vocab_size_per_layer_input": 290, "hidden_size_per_layer_input": 8}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0}
    none = {"vision_config": None, "audio_config": None}
    text = {name: value for name, value in described.items() if name not in none}
    return {"text_config": {**text, **sizes, **layers}, **none}


@pytest.mark.parametrize("arch", SCALED)
def test_scaled_and_capped_logits_are_those_of_transformers(rows: Rows, arch: str) -> None:
    if arch not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know it")
    sizes = {**ARCHITECTURES["qwen2"], "vocab_size": 290, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    described = {**sizes, **SCALED[arch], "initializer_range": 0.3}
    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, **nested(described) if "vision_config" in described else described)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    first = rows.rows(torch.tensor([0]))
    found = token_scores(model, first).logprobs[0]
    torch.testing.assert_close(found, alone(model, rows, 0).log_prob(responses(rows, 0)), atol=1e-5, rtol=0)
    model.config.get_text_config().update({name: 1.0 for name in SCALED[arch] if "logit" in name or "lm_head" in name})
    unscaled = token_scores(model, first).logprobs[0]
    assert float((found - unscaled).detach().abs().max()) > 0.01  # the number matters


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_row_depends_neither_on_padding_nor_on_its_neighbours(
    tiny_model_folder: Folder, rows: Rows, arch: str, critic: str
) -> None:
    model = loaded(tiny_model_folder(arch))
    head: Any = SharedCritic(32) if critic == "shared" else SeparateCritic(loaded(tiny_model_folder(arch)), 32)
    nn.init.normal_(head.head.weight, generator=torch.Generator().manual_seed(0))
    policy = Policy(model, head)
    with torch.no_grad():
        whole = policy(rows, entropy=True)
        order = torch.tensor([2, 0, 3, 1])
        tokens = torch.cat([torch.full((4, 3), 9), rows.tokens, torch.full((4, 2), 8)], 1)
        no = torch.zeros(4, 3, dtype=torch.bool)
        wide = replace(
            rows,
            tokens=tokens,
            prompt_mask=torch.cat([no, rows.prompt_mask], 1),
            mask=torch.cat([rows.mask, no[:, :2]], 1),
        )
        shuffled = policy(wide.rows(order), entropy=True)
    for name in ("logprobs", "entropy", "values"):
        one, other = getattr(whole, name), getattr(shuffled, name)
        assert float(one.abs().max()) > 0.1
        torch.testing.assert_close(other[:, :6], one[order], atol=2e-5, rtol=0)
        assert not other[:, 6:].any()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_with_an_empty_mask_adds_nothing_and_no_nan(
    tiny_model_folder: Folder, rows: Rows, arch: str, attention: str
) -> None:
    model = load_causal_lm(ModelConfig(tiny_model_folder(arch), attention=attention))
    policy = Policy(model, SharedCritic(32))
    nn.init.ones_(policy.critic.head.weight)  # type: ignore[union-attr]

    def learned(chosen: Rows) -> Tensor:
        output = policy(chosen, entropy=True)
        assert output.entropy is not None
        assert output.values is not None
        return gradients(policy, (output.logprobs + output.entropy + output.values).sum())

    # the last row of four has no response; a fifth has not even a prompt
    more = rows.rows(torch.tensor([0, 1, 2, 3, 3]))
    more.prompt_mask[4] = False
    without, beside = learned(rows.rows(torch.arange(3))), learned(more)
    assert torch.isfinite(beside).all()
    assert float((without - beside).norm() / without.norm()) < 1e-6
    nothing = learned(more.rows(torch.tensor([3, 4])))
    assert torch.equal(nothing, torch.zeros_like(nothing))

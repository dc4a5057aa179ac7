"""From hidden states to log-probabilities: in chunks or at once, at a temperature, as each architecture scales its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import logprobs as logprobs_module
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm
from rlhf_lightning.models.logprobs import Head, check_head, token_scores
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.types import Rows
from tests.conftest import ARCHITECTURES
from tests.holes import with_holes

Folder = Callable[[str], str]


@pytest.fixture(params=["whole", "holes"])
def rows(request: pytest.FixtureRequest) -> Rows:
    tokens = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5)[None] < torch.tensor([5, 3, 4])[:, None]
    rows = Rows(tokens, torch.ones(3, 4, dtype=torch.bool), mask, torch.arange(3), mask[:, -1])
    return with_holes(rows) if request.param == "holes" else rows


def distribution(model: Any, rows: Rows, temperature: float) -> torch.distributions.Categorical:
    """What transformers alone says before each response token."""
    return torch.distributions.Categorical(logits=model(rows.tokens, use_cache=False).logits[:, 3:-1] / temperature)


@pytest.mark.parametrize("tokens_at_a_time", [1, 5, 100])
def test_logprobs_and_entropy_at_a_temperature_do_not_depend_on_the_chunks(
    tokens_at_a_time: int, tiny_model_folder: Folder, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs_module, "CHUNK_ELEMENTS", tokens_at_a_time * 290)
    model = load_causal_lm(ModelConfig(tiny_model_folder("llama")))
    output = Policy(model, temperature=0.7)(rows, True)
    expected = distribution(model, rows, 0.7)
    torch.testing.assert_close(
        output.logprobs[rows.mask], expected.log_prob(rows.tokens[:, 4:])[rows.mask], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(output.entropy[rows.mask], expected.entropy()[rows.mask], rtol=0, atol=1e-5)
    assert not output.logprobs[~rows.mask].any()
    assert not output.entropy[~rows.mask].any()
    weights = list(model.parameters())
    found = torch.autograd.grad(output.logprobs.sum() + output.entropy.sum(), weights)
    wanted = (expected.log_prob(rows.tokens[:, 4:]) + expected.entropy())[rows.mask].sum()
    for one, other in zip(found, torch.autograd.grad(wanted, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_head_in_16_bits_is_as_exact_as_its_rounded_logits_allow(autocast: bool, tiny_model_folder: Folder) -> None:
    model = load_causal_lm(ModelConfig(tiny_model_folder("llama"), dtype="float32" if autocast else "bfloat16"))
    dtype, generator = torch.float32 if autocast else torch.bfloat16, torch.Generator().manual_seed(0)
    hidden = torch.randn(7, model.config.hidden_size, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(model.config.vocab_size, (7,), generator=generator)
    head = Head(model, 0.7, entropy=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = head.logits(hidden)
        logprobs, entropy = head(hidden, targets)
    assert entropy is not None
    expected = torch.distributions.Categorical(logits=logits.double() / 0.7)
    for found, wanted in ((logprobs, expected.log_prob(targets)), (entropy, expected.entropy())):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted.float(), rtol=0, atol=2e-6)
        gradients = [torch.autograd.grad(each.sum(), hidden, retain_graph=True)[0] for each in (found, wanted)]
        torch.testing.assert_close(*gradients, rtol=0.02, atol=1e-3)


SCALED: dict[str, dict[str, Any]] = {
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
}


@pytest.mark.parametrize("kind", SCALED)
@torch.no_grad()
def test_logits_are_scaled_as_the_architecture_does(kind: str, rows: Rows) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, **sizes, num_key_value_heads=4, vocab_size=50, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, **SCALED[kind],
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    logprobs: Tensor = token_scores(model, rows, 0.7).logprobs
    expected = distribution(model, rows, 0.7).log_prob(rows.tokens[:, 4:])
    torch.testing.assert_close(logprobs[rows.mask], expected[rows.mask], rtol=0, atol=1e-4)
    check_head(model)


OTHERWISE: dict[str, dict[str, Any]] = {
    "modernbert-decoder": {"cls_token_id": 1, "sep_token_id": 2},  # a layer and a norm before the last
    "recurrent_gemma": {"logits_soft_cap": 2.0, "lru_width": 32},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", OTHERWISE)
def test_an_architecture_with_an_unsupported_head_is_refused(kind: str, dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, **sizes, vocab_size=50, bos_token_id=1, eos_token_id=2, pad_token_id=0, **OTHERWISE[kind]
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.get_input_embeddings().weight.data.normal_()  # which is the head too
    with pytest.raises(UserError, match="ForCausalLM computes its logits in an unsupported way"):
        Policy(model).probe_capabilities()


def test_a_head_that_reads_states_of_another_width_is_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("electra", **sizes, vocab_size=50, is_decoder=True)  # whose embeddings are of 128
    with pytest.raises(UserError, match="ElectraForCausalLM computes its logits in an unsupported way"):
        Policy(AutoModelForCausalLM.from_config(config)).probe_capabilities()


BOTH_WAYS: dict[str, dict[str, Any]] = {
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "cpmant": {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_an_architecture_that_attends_to_later_tokens_is_refused(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=50, **BOTH_WAYS[kind]))
    with pytest.raises(UserError, match=f"{type(model).__name__} with this config attends to later tokens"):
        Policy(model).probe_capabilities()
    if kind == "xlm":
        config = AutoConfig.for_model(kind, vocab_size=50, causal=True, **BOTH_WAYS[kind])
        Policy(AutoModelForCausalLM.from_config(config)).probe_capabilities()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_supported_architectures_are_accepted(arch: str, dtype: Any, tiny_model_folder: Folder) -> None:
    Policy(
        load_causal_lm(ModelConfig(tiny_model_folder(arch), dtype=dtype, lora=LoraOptions(r=2)))
    ).probe_capabilities()


UNUSUAL: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 4, "hidden_size": 32, "num_hidden_layers": 2},  # whose states stay float32
    "llama4_text": {  # its backbone has another name than base_model_prefix
        **{
            "hidden_size": 32,
            "intermediate_size": 64,
            "intermediate_size_mlp": 64,
            "num_hidden_layers": 2,
            "head_dim": 8,
        },
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2},
    },
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", UNUSUAL)
@torch.no_grad()
def test_states_of_another_dtype_and_backbones_of_another_name_are_supported(
    kind: str, dtype: Any, rows: Rows, tokenizer_folder: str
) -> None:
    config = ModelConfig(config={"model_type": kind, **UNUSUAL[kind]}, tokenizer=tokenizer_folder, dtype=dtype)
    model = load_causal_lm(config)
    Policy(model).probe_capabilities()
    assert "base_model_prefix" not in vars(model)  # nothing is set on objects of transformers
    expected = distribution(model, rows, 0.7).log_prob(rows.tokens[:, 4:])
    found = token_scores(model, rows, 0.7).logprobs
    tolerance = 1e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(found[rows.mask], expected[rows.mask].float(), rtol=0, atol=tolerance)

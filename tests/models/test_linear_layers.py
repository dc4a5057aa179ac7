"""What is quantised and adapted: no layer that only looks linear, and experts that are one tensor where that is possible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.models.linear_layers import layers_unlike_linear
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.models.reference import build_reference

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2}
STATES = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False}
ODD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": ({}, []),
    "mixtral": ({"num_local_experts": 4}, []),  # whose router is no linear layer at all
    "phimoe": ({"num_local_experts": 4}, ["model.layers.0.mlp.router", "model.layers.1.mlp.router"]),
    "jamba": ({"num_experts": 2, **STATES}, ["model.layers.0.mamba.dt_proj"]),
}


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    tokens = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    return tokens, torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)


@pytest.mark.parametrize("arch", ODD)
def test_they_are_found_and_neither_quantised_nor_adapted(
    arch: str, tokenizer_folder: str, rows: tuple[Tensor, Tensor, Tensor]
) -> None:
    options, odd = ODD[arch]
    config = ModelConfig(config={"model_type": arch, **SIZES, **options}, tokenizer=tokenizer_folder)
    plain = load_causal_lm(config)
    assert layers_unlike_linear(plain) == odd
    expected = response_logprobs(plain, *rows).detach()
    for kind, tolerance in (("nf4", 0.1), ("int8", 0.01)):
        reference: Any = build_reference(kind, config, plain, "cpu")  # type: ignore[arg-type]
        found = reference.logprobs(*rows, 1.0)
        assert 0 < float((found - expected).abs().max()) < tolerance
        assert all(type(reference._model.get_submodule(name)) is type(plain.get_submodule(name)) for name in odd)
    config.lora = LoraOptions(r=2)
    model = load_causal_lm(config)
    response_logprobs(model, *rows).sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_B" in name]
    assert all(model.get_parameter(name).grad is not None for name in trained)
    assert not [name for name in trained if any(part in name for part in odd)]


@pytest.mark.parametrize("arch", ["mixtral", "phimoe", "jamba"])
def test_experts_in_one_tensor_are_quantised_in_a_reference_and_named_where_they_are_not(
    arch: str, tokenizer_folder: str, rows: tuple[Tensor, Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(config={"model_type": arch, **SIZES, **ODD[arch][0]}, tokenizer=tokenizer_folder)
    plain = load_causal_lm(config)
    left = f"the experts of {type(plain).__name__} stay in torch.float32, "
    sizes: dict[str, int] = {}
    for kind in ("full", "nf4", "int8"):
        reference: Any = build_reference(kind, config, plain, "cpu")  # type: ignore[arg-type]
        experts = [p for name, p in reference._model.named_parameters() if ".experts." in name]
        sizes[kind] = sum(p.numel() * p.element_size() for p in experts)
        assert (left in capsys.readouterr().out) == (kind == "int8")
        assert (experts[0].dtype == torch.uint8) == (kind == "nf4")
    assert sizes["nf4"] * 8 == sizes["full"] == sizes["int8"]
    load_causal_lm(replace(config, quantization="nf4", lora=LoraOptions(r=2)))
    assert f"nf4: {left}" in capsys.readouterr().out

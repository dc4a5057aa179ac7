"""Generation in 16 bits: what is cast for a token, and what is recorded of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.half_precision import Float32Attention
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Generated, SamplingParams

ROWS, PROMPT = 4, 8


class BytesCast(TorchDispatchMode):
    """Sum the bytes of floats that conversions to another dtype read, by the number of elements of the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.by_size: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[func is torch.ops.aten.copy_.default]
            if source.is_floating_point() and source.dtype != result.dtype:
                self.by_size[source.numel()] += source.nbytes
        return result


def model_of(kind: str = "llama", hidden: int = 16, **options: Any) -> Any:
    config = AutoConfig.for_model(
        kind,
        vocab_size=48,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        initializer_range=0.2,
        **options,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@contextmanager
def precision(name: str, model: Any) -> Iterator[Any]:
    with torch.autocast("cpu", torch.bfloat16) if name == "bf16-mixed" else nullcontext():
        yield model.bfloat16() if name == "bf16-true" else model


def generate(model: Any, tokens: int, temperature: float = 1.0, **options: Any) -> Generated:
    prompts = torch.arange(ROWS * PROMPT).view(ROWS, PROMPT) % 48
    params = SamplingParams(tokens, temperature, [], 0)
    request = Policy(model.eval()).request(
        prompts=prompts,
        prompt_mask=torch.ones_like(prompts, dtype=torch.bool),
        params=params,
        randomness=Randomness(0, 0, tuple(range(ROWS))),
    )
    return Sampler(tokens, **options).generate(request)


def cast_for_tokens(model: Any, tokens: int, **options: Any) -> Counter[int]:
    """Return the bytes cast for the last `tokens` / 2 tokens by the size of the tensor, once weights are cast."""
    generate(model, 2, **options)
    with BytesCast() as half:
        generate(model, tokens // 2, **options)
    with BytesCast() as whole:
        generate(model, tokens, **options)
    return whole.by_size - half.by_size


def frozen_base(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))


WAYS = [
    pytest.param("llama", {}, {}, id="continuous"),
    pytest.param("llama", {}, {"continuous_batching": False}, id="static"),
    pytest.param("mistral", {"sliding_window": 12}, {}, id="window"),
]


@pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(("kind", "config", "options"), WAYS)
def test_what_is_cast_for_a_token_grows_with_neither_weights_nor_cache(
    kind: str, config: dict[str, Any], options: dict[str, Any], adapter: bool, name: str
) -> None:
    per_token = {}
    for hidden in (32, 128):
        model = model_of(kind, hidden, **config)
        with precision(name, frozen_base(model) if adapter else model) as given:
            short, long = (cast_for_tokens(given, tokens, **options) for tokens in (16, 64))
        per_token[hidden] = short.total() / 8
        assert long.total() / 32 == per_token[hidden]  # the cache does not matter
        assert max(long) < hidden**2
    assert 0 < per_token[128] <= 4 * per_token[32]  # activations have 4 times the width, weights 16 times the elements


@pytest.mark.parametrize(("kind", "config", "options"), WAYS)
@pytest.mark.parametrize("name", ["bf16-mixed", "bf16-true"])
def test_greedy_tokens_are_those_of_transformers(
    name: str, kind: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    with precision(name, model_of(kind, **config)) as model:
        found = generate(model, 12, 0.0, **options)
        prompts = torch.arange(ROWS * PROMPT).view(ROWS, PROMPT) % 48
        with torch.no_grad():
            expected = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=12, eos_token_id=None
            )
    assert (found.tokens == expected[:, PROMPT:]).float().mean() > 0.9  # rounding may order two close logits otherwise


def test_frozen_weights_stay_frozen() -> None:
    model = frozen_base(model_of())
    before = {name: x.requires_grad for name, x in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, 4)
    assert {name: x.requires_grad for name, x in model.named_parameters()} == before
    assert not found.logprobs.requires_grad


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_float32_has_the_dtype_and_the_numbers_of_attention(autocast: bool) -> None:
    q, k, v = (torch.randn(2, 3, n, 8).to(torch.float32 if autocast else torch.bfloat16) for n in (1, 5, 5))
    mask = torch.rand(2, 1, 1, 5) < 0.8
    mask[..., 0] = True
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = attention(q, k, v, attn_mask=mask)
        with Float32Attention():
            found = attention(q, k, v, attn_mask=mask)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    exact = attention(q.float(), k.float(), v.float(), attn_mask=mask)
    torch.testing.assert_close(found.float(), exact, rtol=0.005, atol=1e-6)

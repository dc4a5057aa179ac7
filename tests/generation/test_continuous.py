"""Continuous batching: the same responses as one batch of all rows, with one pass per generated token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation import local
from rlhf_lightning.generation.base import Generated, GenerationRequest, Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.sampling import sample
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.backbone import capabilities_of
from rlhf_lightning.models.kv_cache import SlotCache, rows_are_independent
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.logprobs import response_logprobs
from rlhf_lightning.seeding import Randomness

STOPS = [2, *range(40, 60)]


@pytest.fixture
def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Five prompts of 6, 3, 5, 1 and 6 tokens, left padded."""
    mask = torch.arange(6)[None] >= torch.tensor([0, 3, 1, 5, 0])[:, None]
    tokens = torch.randint(3, 90, (5, 6), generator=torch.Generator().manual_seed(1))
    return tokens.masked_fill(~mask, 0), mask


@pytest.fixture
def llama(tiny_model_folder: Callable[[str], str]) -> Any:
    return load_causal_lm(ModelConfig(name_or_path=tiny_model_folder("llama")))


def tiny(kind: str, **options: Any) -> Any:
    """A random model of two layers with large weights, so that a token that is not attended to is missed."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **{**sizes, "num_key_value_heads": 4, "vocab_size": 100, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 0.3)
    return model


class Passes:
    """Records the rows and columns of every pass through a model's backbone."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        model.base_model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module: Any, args: Any, kwargs: Any) -> None:
        self.shapes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))


def sampled(
    sampler: Generator,
    model: Any,
    prompts: Any,
    copies: int = 1,
    stops: list[int] = STOPS,
    pad: int = 0,
    temperature: float | None = None,
) -> Generated:
    params = sampler.sampling_params(stops, pad, copies, temperature)
    return sampler.generate(
        GenerationRequest(*prompts, params, Randomness(3, 0, tuple(range(len(prompts[0]) * copies))), model)
    )


def generate(model: Any, prompts: Any, copies: int = 3, stops: list[int] = STOPS, **options: Any) -> Generated:
    return sampled(Sampler(**{"max_new_tokens": 12, "temperature": 0.8, **options}), model, prompts, copies, stops, 2)


def assert_same(one: Generated, other: Generated) -> None:
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_any_number_of_slots_generates_the_responses_of_one_batch(
    arch: str, prompts: Any, tiny_model_folder: Callable[[str], str]
) -> None:
    model = load_causal_lm(ModelConfig(name_or_path=tiny_model_folder(arch)))
    expected = generate(model, prompts, continuous_batching=False)
    assert len(set(expected.mask.sum(-1).tolist())) > 3  # uneven lengths
    for slots in (1, 2, 4, 7, 15, 100):
        assert_same(generate(model, prompts, max_batch_size=slots), expected)


def test_prompts_are_read_in_passes_of_as_many_tokens_as_any_other_pass(llama: Any, prompts: Any) -> None:
    capabilities = capabilities_of(llama.base_model)
    capabilities.max_tokens_per_batch = None
    at_once = generate(llama, prompts)
    capabilities.max_tokens_per_batch = 12
    passes = Passes(llama)
    assert_same(generate(llama, prompts), at_once)
    assert [shape for shape in passes.shapes if shape[1] > 1] == [(2, 6), (2, 5), (1, 6)]


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_mixed_precision_records_the_logprobs_of_a_pass_over_the_rows(
    arch: str, prompts: Any, tiny_model_folder: Callable[[str], str]
) -> None:
    model = load_causal_lm(ModelConfig(name_or_path=tiny_model_folder(arch)))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        generated = generate(model, prompts, max_batch_size=4)
        tokens, mask = (x.repeat_interleave(3, 0) for x in prompts)
        whole = torch.cat([tokens, generated.tokens], 1)
        recomputed = response_logprobs(model, whole, mask, generated.mask, temperature=0.8)
    assert generated.mask.sum() > 30
    torch.testing.assert_close(recomputed, generated.logprobs * generated.mask, atol=0.05, rtol=0)


def test_the_backbone_reads_prompts_once_and_every_generated_token_but_the_last_once(llama: Any, prompts: Any) -> None:
    prompts = (prompts[0][[0, 4, 0]], prompts[1][[0, 4, 0]])  # without padding
    for slots in (1, 3, 5, 30):
        passes = Passes(llama)
        generated = generate(llama, prompts, 4, max_batch_size=slots)
        expected = prompts[0].numel() + int((generated.mask.sum(-1) - 1).sum())
        assert sum(rows * columns for rows, columns in passes.shapes) == expected


def test_a_row_that_waits_takes_the_slot_of_one_that_ended(llama: Any, prompts: Any) -> None:
    passes = Passes(llama)
    generated = generate(llama, (prompts[0][:3], prompts[1][:3]), 6, max_batch_size=4)
    lengths = generated.mask.sum(-1)
    assert int((lengths > 1).sum()) > 8  # rows that do not end with their first token
    prefills = [index for index, (_, columns) in enumerate(passes.shapes) if columns > 1]
    decoded = [rows for rows, columns in passes.shapes if columns == 1]
    full = decoded.count(4)
    assert decoded[:full] == [4] * full  # no slot is empty while a row waits
    assert decoded[full:] == sorted(decoded[full:], reverse=True)  # and then the batch only shrinks
    assert len(prefills) == 3  # a prompt is computed when no row waits
    assert 1 < prefills[1] < prefills[2] < full


@pytest.mark.parametrize(("rows", "prompts_at_a_time"), [(256, [5]), (7, [2, 2, 1]), (2, [1] * 5)])
def test_without_continuous_batching_rows_wait_until_all_decoding_rows_have_ended(
    rows: int, prompts_at_a_time: list[int], llama: Any, prompts: Any
) -> None:
    passes = Passes(llama)
    static = generate(llama, prompts, stops=[], max_batch_size=rows, continuous_batching=False)
    assert passes.shapes == [shape for n in prompts_at_a_time for shape in [(n, 6)] + [(3 * n, 1)] * 11]
    assert_same(static, generate(llama, prompts, stops=[]))


def test_long_responses_outgrow_the_room_that_slots_have_at_first(llama: Any, prompts: Any) -> None:
    options: dict[str, Any] = {"stops": [2, 3], "max_new_tokens": 90}
    expected = generate(llama, prompts, 1, continuous_batching=False, **options)
    assert int(expected.mask.sum(-1).max()) == 90
    assert_same(generate(llama, prompts, 1, max_batch_size=3, **options), expected)


def test_a_step_updates_the_cache_in_place() -> None:
    cache, prefilled = SlotCache(1, slots=3, columns=8, limit=8), DynamicCache()
    prompt = torch.arange(2 * 4, dtype=torch.float32).view(2, 1, 4, 1)
    prefilled.update(prompt, -prompt, 0)
    cache.place(torch.tensor([0, 2]), prefilled, torch.tensor([1, 0]), 3)
    place = cache.layers[0].keys.data_ptr()
    cache.point(torch.tensor([3, 0, 2]), 4)
    keys, values = cache.update(torch.full((3, 1, 1, 1), 9.0), torch.full((3, 1, 1, 1), -9.0), 0)
    assert keys[:, 0, :, 0].tolist() == [[4, 5, 6, 9], [9, 0, 0, 0], [0, 1, 9, 0]]
    assert torch.equal(values, -keys)
    cache.move(torch.tensor([1]), torch.tensor([2]))
    cache.point(torch.tensor([4, 3]), 5)
    keys, _ = cache.update(torch.full((2, 1, 1, 1), 7.0), torch.zeros(2, 1, 1, 1), 0)
    assert keys[:, 0, :, 0].tolist() == [[4, 5, 6, 9, 7], [0, 1, 9, 7, 0]]
    assert keys.data_ptr() == place


def test_room_grows_for_the_rows_that_are_left() -> None:
    cache, prefilled = SlotCache(1, slots=4, columns=2, limit=7), DynamicCache()
    prompt = torch.arange(4 * 2, dtype=torch.float32).view(4, 1, 2, 1)
    prefilled.update(prompt, -prompt, 0)
    cache.place(torch.arange(4), prefilled, torch.arange(4), 2)
    cache.point(torch.tensor([2, 2, 2]), 3)
    assert cache.layers[0].keys.shape == (3, 1, 4, 1)
    keys, values = cache.update(torch.full((3, 1, 1, 1), 9.0), torch.full((3, 1, 1, 1), -9.0), 0)
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 9], [2, 3, 9], [4, 5, 9]]
    assert torch.equal(values, -keys)
    cache.point(torch.tensor([6]), 7)
    assert cache.layers[0].values.shape == (1, 1, 7, 1)


def test_prompts_without_a_token_are_continued_too(llama: Any) -> None:
    nothing = torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1, dtype=torch.bool)
    generated = generate(llama, nothing, max_batch_size=3)
    assert bool(generated.mask[:, 0].all())
    assert bool(generated.logprobs.isfinite().all())  # type: ignore[union-attr]


SCALED = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a sliding window": ("mistral", {"sliding_window": 4}),
    "windows in every other layer": ("gemma2", {"sliding_window": 4, "head_dim": 8}),
    "chunks of attention": (
        "gpt_neo",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    ),
    "alibi": ("bloom", {"n_head": 4, "n_layer": 2}),
    "positions scaled by the longest row": ("llama", {"rope_parameters": SCALED, "max_position_embeddings": 15}),
    "convolutions beside attention": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "states beside attention": (
        "falcon_h1",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_more_than_keys_and_values_decodes_together(
    name: str, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(local, "ContinuousBatch")
    kind, options = OTHERS[name]
    model = tiny(kind, **options)
    assert not rows_are_independent(model, 16)
    ours = sampled(Sampler(10), model, prompts, 2, temperature=0.0)
    theirs = sampled(TransformersGenerate(10), model, prompts, temperature=0.0)
    assert torch.equal(ours.tokens, theirs.tokens.repeat_interleave(2, 0))
    assert len(set(ours.mask.sum(-1).tolist())) > 1  # rows leave at different times


def test_a_model_that_keeps_neither_keys_nor_values_is_named(prompts: Any) -> None:
    model = tiny("mamba", state_size=4)
    with pytest.raises(
        UserError, match=r"MambaForCausalLM returns no past_key_values.* set generation: TransformersGenerate"
    ):
        generate(model, prompts)
    generated = sampled(TransformersGenerate(4), model, prompts)
    assert bool(generated.mask[:, 0].all())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gemma2", {"sliding_window": 16, "head_dim": 8}),
        ("llama", {"rope_parameters": SCALED, "max_position_embeddings": 16}),
    ],
)
def test_windows_and_scaled_positions_that_no_row_reaches_do_not_matter(
    kind: str, options: dict[str, Any], prompts: Any
) -> None:
    model = tiny(kind, **options)
    assert rows_are_independent(model, 16)
    assert not rows_are_independent(model, 17)
    ours = sampled(Sampler(10, max_batch_size=2), model, prompts, temperature=0.0)
    theirs = sampled(TransformersGenerate(10), model, prompts, temperature=0.0)
    assert torch.equal(ours.tokens, theirs.tokens)


def test_a_model_with_a_cache_of_its_own_decodes_together(llama: Any, prompts: Any) -> None:
    class OwnCache(DynamicCache):
        pass

    def swap(module: Any, args: Any, output: Any) -> None:
        output.past_key_values.__class__ = OwnCache

    expected = generate(llama, prompts)
    llama.base_model.register_forward_hook(swap)
    passes = Passes(llama)
    assert_same(generate(llama, prompts, max_batch_size=6), expected)
    assert passes.shapes[:2] == [(2, 6), (2, 6)]  # the static decoder starts over


def test_samples_equal_those_of_a_sum_over_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (3, 64, 1000):
        logits = 4 * torch.randn(500, vocabulary, generator=generator)
        uniforms = torch.rand(500, generator=generator)
        sums = logits.double().softmax(-1).cumsum(-1)
        expected = (sums <= uniforms[:, None]).sum(-1)
        chosen, logprobs = sample(logits, 1.0, uniforms)
        assert torch.equal(chosen, expected)
        exact = logits.double().log_softmax(-1).gather(-1, expected[:, None]).squeeze(-1)
        torch.testing.assert_close(logprobs.double(), exact, atol=1e-5, rtol=0)


def test_a_token_of_probability_zero_is_never_sampled() -> None:
    for vocabulary in (70, 256):
        logits = torch.randn(100, vocabulary, generator=torch.Generator().manual_seed(1))
        logits[:, :2] = logits[:, 30:40] = logits[:, 60:] = -torch.inf
        for uniform in (0.0, 0.5, 1 - 2**-24):
            chosen, logprobs = sample(logits, 1.0, torch.full((100,), uniform))
            assert bool(logprobs.isfinite().all())
            assert bool(logits.gather(-1, chosen[:, None]).isfinite().all())


def test_no_slots_are_refused() -> None:
    with pytest.raises(UserError, match=r"max_batch_size is 0; .* set it to at least 1"):
        Sampler(max_batch_size=0)

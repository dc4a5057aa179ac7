"""The built-in sampler against transformers: the same greedy tokens, the same distribution, the same log-probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generated, GenerationRequest, Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.sampling import sample
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.logprobs import token_scores
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Rows

STOPS = [2, 40, 41, 42, 43, 44, 45]


@pytest.fixture(params=["llama", "qwen2", "gpt2", "gpt_neox"])
def model(request: pytest.FixtureRequest, tiny_model_folder: Callable[[str], str]) -> Any:
    return load_causal_lm(ModelConfig(name_or_path=tiny_model_folder(request.param)))


@pytest.fixture
def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 6, 3 and 5 tokens, left padded."""
    mask = torch.arange(6)[None] >= torch.tensor([0, 3, 1])[:, None]
    tokens = torch.randint(3, 280, (3, 6), generator=torch.Generator().manual_seed(0))
    return tokens.masked_fill(~mask, 0), mask


def generate(
    sampler: Generator,
    model: Any,
    prompts: Any,
    responses: int = 1,
    stops: list[int] = STOPS,
    pad: int = 0,
    seed: int = 0,
    temperature: float | None = None,
) -> Generated:
    params = sampler.sampling_params(stops, pad, responses, temperature)
    return sampler.generate(
        GenerationRequest(*prompts, params, Randomness(seed, 0, tuple(range(len(prompts[0]) * responses))), model)
    )


@pytest.mark.parametrize("pad", [0, 2])  # 2 is a stop token too
def test_greedy_decoding_equals_that_of_transformers(model: Any, prompts: Any, pad: int) -> None:
    ours = generate(Sampler(10), model, prompts, 1, STOPS, pad, 0, 0.0)
    theirs = generate(TransformersGenerate(10), model, prompts, 1, STOPS, pad, 0, 0.0)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.mask, theirs.mask)


def test_what_a_model_adds_to_its_distribution_is_left_out(
    prompts: Any, tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model_folder("llama"), tmp_path / "model")
    plain = load_causal_lm(ModelConfig(str(folder)))
    GenerationConfig(repetition_penalty=5.0, min_new_tokens=9, num_beams=2).save_pretrained(folder)
    model = load_causal_lm(ModelConfig(str(folder)))
    ours = generate(Sampler(10), plain, prompts, 1, STOPS, 0, 0, 0.0)
    theirs = generate(TransformersGenerate(10), model, prompts, 1, STOPS, 0, 0, 0.0)
    assert torch.equal(ours.tokens, theirs.tokens)


def test_log_probabilities_agree_three_ways(model: Any, prompts: Any) -> None:
    tokens, prompt_mask = prompts
    generated = generate(Sampler(10, temperature=0.7), model, prompts, 3, STOPS, 2, 0)
    index = torch.arange(3).repeat_interleave(3)
    rows = Rows(
        torch.cat([tokens[index], generated.tokens], 1), prompt_mask[index], generated.mask, index, index.bool()
    )
    assert len(set(generated.mask.sum(-1).tolist())) > 1  # rows finish at different times
    recomputed = token_scores(model, rows, 0.7).logprobs
    torch.testing.assert_close(generated.logprobs, recomputed, atol=1e-5, rtol=0)
    for row in range(len(rows)):  # by transformers alone, without padding
        ids = torch.cat([tokens[index[row]][prompt_mask[index[row]]], generated.tokens[row][generated.mask[row]]])[None]
        logprobs = (model(ids).logits / 0.7).log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
        length = int(generated.mask[row].sum())
        torch.testing.assert_close(logprobs[-length:], recomputed[row, :length], atol=1e-5, rtol=0)


def test_responses_end_at_the_first_stop_token(model: Any, prompts: Any) -> None:
    generated = generate(Sampler(12), model, prompts, 8, STOPS, 0, 0)
    stops = torch.isin(generated.tokens, torch.tensor(STOPS)) & generated.mask
    assert stops.any()
    assert bool((stops.sum(-1) <= 1).all())
    for row in torch.nonzero(stops.any(-1)).flatten():
        assert stops[row].nonzero().item() == generated.mask[row].sum() - 1
    assert not generated.tokens[~generated.mask].any()


def test_a_seed_repeats_and_a_row_does_not_depend_on_the_others(
    prompts: Any, tiny_model_folder: Callable[[str], str]
) -> None:
    model = load_causal_lm(ModelConfig(name_or_path=tiny_model_folder("llama")))
    first, again, other = (generate(Sampler(8), model, prompts, 2, [2], 0, seed) for seed in (4, 4, 5))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_a_row_that_ends_changes_no_other(prompts: Any, tiny_model_folder: Callable[[str], str]) -> None:
    model = load_causal_lm(ModelConfig(name_or_path=tiny_model_folder("gpt2")))
    long = generate(Sampler(12), model, prompts, 4, [], 0, 0)
    short = generate(Sampler(12), model, prompts, 4, list(range(60)), 0, 0)
    assert 0 < int(short.mask[:, 5].sum()) < 12  # some rows continue after others ended
    assert long.mask.all()
    assert torch.equal(short.tokens[short.mask], long.tokens[short.mask])
    torch.testing.assert_close(short.logprobs[short.mask], long.logprobs[short.mask], atol=1e-5, rtol=0)  # type: ignore[index]
    assert len({tuple(row) for row in long.tokens[:4].tolist()}) == 4  # and each has its own random numbers


@pytest.mark.parametrize("kind", [Sampler, TransformersGenerate])
def test_a_stop_token_that_is_the_pad_token_belongs_to_the_response(
    kind: Any, prompts: Any, tiny_model_folder: Callable[[str], str]
) -> None:
    model = load_causal_lm(ModelConfig(name_or_path=tiny_model_folder("gpt2")))
    first = generate(Sampler(1), model, prompts, 1, [], 0, 0, 0.0).tokens[0, 0]
    generated = generate(kind(4), model, prompts, 1, [int(first)], int(first), 0, 0.0)
    assert generated.mask[0].tolist() == [True, False, False, False]
    assert (generated.tokens[0] == first).all()


def test_the_distribution_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, 4
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(20)
    prompt, mask, count = torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool), 4000
    seen = []
    for sampler in (Sampler(2), TransformersGenerate(2)):
        generated = generate(sampler, model, (prompt, mask), count, [4], 0, 0)
        seen.append(torch.bincount(generated.tokens[:, 0] * 5 + generated.tokens[:, 1], minlength=25).double() / count)
    first = (model(prompt).logits[0, -1].double()).softmax(-1)
    for frequencies in seen:
        assert float((frequencies.view(5, 5).sum(1) - first).detach().abs().max()) < 4 * (0.25 / count) ** 0.5
    assert float((seen[0] - seen[1]).abs().max()) < 4 * (0.5 / count) ** 0.5


def test_sampling_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log().repeat(4, 1)
    chosen, logprobs = sample(logits, 1.0, torch.tensor([0.0, 0.199, 0.21, 0.9999]))
    assert chosen.tolist() == [0, 0, 1, 2]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.2, 0.2, 0.3, 0.5]))
    assert sample(logits, 0.0, torch.zeros(4))[0].tolist() == [2] * 4


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("vocabulary", [3, 64, 70, 5000])
def test_probability_zero_is_never_sampled_and_nan_gives_a_valid_token(vocabulary: int, uniform: float) -> None:
    logits = torch.full((4, vocabulary), -torch.inf)
    logits[0, -1], logits[1, 0], logits[2, [0, -1]] = 0.0, 0.0, torch.tensor([0.0, -80.0])
    logits[3] = torch.nan
    chosen = sample(logits, 1.0, torch.full((4,), uniform))[0].tolist()
    assert chosen[:3] == [vocabulary - 1, 0, 0]
    assert 0 <= chosen[3] < vocabulary


def test_a_very_unlikely_token_can_be_sampled_and_its_impossible_neighbour_cannot() -> None:
    logits = torch.full((1, 128), -29.0)  # below 2^-40
    logits[0, 0], logits[0, 64] = -torch.inf, 0.0
    assert sample(logits, 1.0, torch.zeros(1))[0].tolist() == [1]


def test_lengths_and_temperatures_that_cannot_be() -> None:
    for option, expected in (({"max_new_tokens": 0}, "at least 1"), ({"temperature": -1.0}, "positive")):
        with pytest.raises(UserError, match=expected):
            Sampler(**option)  # type: ignore[arg-type]

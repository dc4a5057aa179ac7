"""A row's random numbers depend on the seed, the rollout and its global number alone, and so do its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_encoder
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness

ROWS = [{"prompt": text} for text in ("say hello", "thank you", "the cat", "please", "say dog")]


def test_a_number_belongs_to_its_row_and_column() -> None:
    whole = Randomness(3, 1, (0, 1, 2, 7)).uniforms(40)
    assert whole.shape == (40, 4)
    assert torch.equal(Randomness(3, 1, (7, 1)).uniforms(40), whole[:, [3, 1]])
    for width in (1, 5, 16, 17, 39):  # torch fills 16 and more numbers by another path
        assert torch.equal(Randomness(3, 1, (0, 1, 2, 7)).uniforms(width), whole[:width])
    assert not torch.equal(Randomness(4, 1, (0,)).uniforms(40), whole[:, :1])
    assert not torch.equal(Randomness(3, 2, (0,)).uniforms(40), whole[:, :1])
    assert Randomness(3, 1, ()).uniforms(4).shape == (4, 0)


def test_the_numbers_of_a_row_are_the_same_on_every_machine() -> None:
    randomness = Randomness(0, 0, (0, 1))
    assert randomness.seeds() == [3010437511937009226, 7340735519819088668]
    expected = torch.tensor([[0.8332929, 0.03795433], [0.50544041, 0.35014135]])
    torch.testing.assert_close(randomness.uniforms(2), expected, rtol=0, atol=1e-7)


def test_numbers_are_uniform_and_independent() -> None:
    numbers = Randomness(0, 5, tuple(range(4000))).uniforms(8).double()
    assert float((numbers.mean(1) - 0.5).abs().max()) < 4 * (1 / 12 / 4000) ** 0.5
    assert float((numbers.var(1) - 1 / 12).abs().max()) < 4 * (1 / 180 / 4000) ** 0.5
    correlation = torch.corrcoef(numbers) - torch.eye(8)
    assert float(correlation.abs().max()) < 4.5 / 4000**0.5
    neighbours = torch.corrcoef(torch.stack([numbers[0, :-1], numbers[0, 1:]]))[0, 1]
    assert abs(float(neighbours)) < 4 / 4000**0.5


def test_copies_of_a_row_have_numbers_of_their_own() -> None:
    assert Randomness(0, 0, (0, 3)).repeated(2).rows == (0, 1, 6, 7)
    assert Randomness(0, 0, (4, 5, 6)).of(range(1, 3)).rows == (5, 6)


@pytest.fixture
def generate(tiny_model_folder: Callable[[str], str]) -> Callable[..., Any]:
    config = ModelConfig(name_or_path=tiny_model_folder("llama"))
    policy, encoder = Policy(load_causal_lm(config)).eval(), load_encoder(config)

    def responses(generation: Generator, places: tuple[int, ...] = (0, 1, 2, 3, 4), copies: int = 3) -> Any:
        responder = ResponseGenerator(policy, generation, encoder)
        return responder.generate([ROWS[place] for place in places], copies, Randomness(1, 2, places))

    return responses


@pytest.mark.parametrize(
    "options", [{}, {"max_batch_size": 1}, {"max_batch_size": 4}, {"continuous_batching": False}], ids=str
)
def test_the_rows_of_a_rank_get_the_responses_that_they_get_in_the_whole_batch(
    options: dict[str, Any], generate: Callable[..., Any]
) -> None:
    whole = generate(Sampler(12))
    assert whole.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert len(set(whole.responses)) > 12
    for own in ((0, 2, 4), (1, 3)):  # the shards of two ranks
        part = generate(replace(Sampler(12), **options), own)
        index = [place * 3 + copy for place in own for copy in range(3)]
        assert part.responses == [whole.responses[row] for row in index]
        assert torch.equal(part.groups, whole.groups[index])
        torch.testing.assert_close(part.logprobs, whole.logprobs[index], atol=1e-5, rtol=0)


def test_transformers_repeats_the_responses_of_the_same_rows(generate: Callable[..., Any]) -> None:
    engine, state = TransformersGenerate(12), torch.random.get_rng_state()
    assert generate(engine).responses == generate(engine).responses
    assert generate(engine, (0, 2, 4)).responses != generate(engine, (1, 2, 4)).responses
    assert torch.equal(state, torch.random.get_rng_state())

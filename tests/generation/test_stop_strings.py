"""A response ends with the token after which its text contains a stop string, whatever decodes beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from tiny_tokenizers import KINDS

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.generation.stop_strings import StopStrings, before_stop_string
from rlhf_lightning.generation.transformers import TransformersGenerate
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_encoder
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness

TEXT = "the answer is hello\n\nworld, 17 * 3 é 漢字 🙂 the user asked: hello  there 👩‍👩‍👧"
ENGINES = [
    pytest.param(Sampler, id="continuous"),
    pytest.param(partial(Sampler, max_batch_size=2), id="two slots"),
    pytest.param(partial(Sampler, continuous_batching=False), id="static"),
    pytest.param(partial(Sampler, continuous_batching=False, max_batch_size=3), id="static, three rows"),
]


def naive_end(decode: Callable[[list[int]], str], ids: list[int], strings: list[str]) -> int | None:
    """The definition: the length of the first beginning whose text contains a stop string."""
    lengths = range(1, len(ids) + 1)
    return next((n for n in lengths if any(string in decode(ids[:n]) for string in strings)), None)


def found_end(decode: Callable[[list[int]], str], ids: list[int], strings: list[str]) -> int | None:
    stop = StopStrings(strings, decode)
    return next((n for n in range(1, len(ids) + 1) if stop.completed_by_last(ids[:n])), None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_window_finds_what_the_whole_text_has(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids)
    random = Random(0)
    for _ in range(60):
        begin = random.randrange(len(text) - 1)
        strings = [text[begin : begin + random.randint(1, 9)], "never there"]
        for repeated in (ids, [*ids, len(tokenizer) + 5, *ids]):  # an id without a text, of a padded vocabulary
            end = naive_end(tokenizer.decode, repeated, strings)
            assert end is not None
            assert found_end(tokenizer.decode, repeated, strings) == end, strings
    assert found_end(tokenizer.decode, ids, ["never there"]) is None


@pytest.mark.parametrize(
    ("string", "pieces"),
    [
        ("hello", [["hello"]]),
        ("lo\n\nwo", [["hel", "lo"], ["\n", "\n"], ["w", "orld"]]),  # spans tokens
        ("ell", [["hello"]]),  # within a token
        ("é", [["é"]]),
        ("🙂", [["🙂"]]),  # four bytes, of which each may be a token
        ("👩‍👩", [["👩‍👩‍👧"]]),
    ],
)
def test_a_string_within_a_token_across_tokens_and_of_several_bytes(string: str, pieces: list[list[str]]) -> None:
    tokenizer = KINDS["byte_level"]()
    ids = [i for group in pieces for piece in group for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    end = found_end(tokenizer.decode, ids, [string])
    assert end is not None
    assert string in tokenizer.decode(ids[:end])
    assert string not in tokenizer.decode(ids[: end - 1])


def test_a_window_that_cuts_a_word_is_not_the_text() -> None:
    words = {1: "play", 2: "##ing", 3: " x"}

    def decode(ids: list[int]) -> str:  # as WordPiece does: a continuation at the beginning shows its mark
        return "".join(words[i] if n == 0 else words[i].removeprefix("##") for n, i in enumerate(ids))

    assert found_end(decode, [1, *[2] * 20, 3], ["##"]) is None


def test_special_tokens_end_a_response_by_their_text() -> None:
    tokenizer = KINDS["byte_level"]()
    ids = tokenizer("hello<|endoftext|>hello", add_special_tokens=False)["input_ids"]
    end = found_end(tokenizer.decode, ids, ["<|endoftext|>"])
    assert end is not None
    assert ids[end - 1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")


@pytest.fixture
def responder(tiny_model_folder: Callable[[str], str]) -> Callable[..., Any]:
    config = ModelConfig(name_or_path=tiny_model_folder("llama"))
    policy, encoder = Policy(load_causal_lm(config)).eval(), load_encoder(config)

    def generate(generation: Generator, copies: int = 3, **options: Any) -> Any:
        rows = [{"prompt": text} for text in ("say hello", "thank you", "the cat", "please")]
        answers = ResponseGenerator(policy, generation, encoder)
        return answers.generate(rows, copies, Randomness(5, 0, (0, 1, 2, 3)), **options)

    generate.encoder = encoder  # type: ignore[attr-defined]
    return generate


def chosen(completions: Any) -> list[list[int]]:
    width = completions.prompt_mask.shape[1]
    rows = zip(completions.tokens[:, width:], completions.mask, strict=True)
    return [tokens[mask].tolist() for tokens, mask in rows]


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_stop_at_the_same_place_whatever_decodes_beside_them(
    engine: Callable[..., Generator], responder: Any
) -> None:
    encoder: Encoder = responder.encoder
    free = responder(Sampler(24))
    texts = [encoder.tokenizer.decode(ids) for ids in chosen(free)]
    strings = [texts[0][9:12], texts[4][14:16], texts[7][3]]
    ends = [naive_end(encoder.tokenizer.decode, ids, strings) for ids in chosen(free)]
    assert sum(end is not None for end in ends) >= 3
    assert len({*ends}) > 2
    stopped = responder(engine(24, stop_strings=strings))
    assert chosen(stopped) == [ids[:end] for ids, end in zip(chosen(free), ends, strict=True)]
    for row, end in enumerate(ends):
        by_token = chosen(free)[row][-1] in encoder.stop_tokens
        assert bool(stopped.truncated[row]) is (end is None and not by_token)
        assert stopped.responses[row] == before_stop_string(free.responses[row], strings)
        assert not any(string in stopped.responses[row] for string in strings)
    torch.testing.assert_close(stopped.logprobs, free.logprobs * stopped.mask, atol=1e-5, rtol=0)


def test_transformers_stops_where_the_sampler_does(responder: Any) -> None:
    free = responder(Sampler(24), 1, temperature=0.0)
    texts = [responder.encoder.tokenizer.decode(ids) for ids in chosen(free)]
    strings = [texts[0][5:8], texts[3][9:11]]
    ours, theirs = (
        responder(kind(24, stop_strings=strings), 1, temperature=0.0) for kind in (Sampler, TransformersGenerate)
    )
    assert chosen(ours) == chosen(theirs)
    assert chosen(ours) != chosen(free)
    assert ours.truncated.tolist() == theirs.truncated.tolist()
    assert ours.responses == theirs.responses


def test_a_string_that_the_last_possible_token_completes_is_no_truncation(responder: Any) -> None:
    free = responder(Sampler(6), 1, temperature=0.0)
    last = responder.encoder.tokenizer.decode(chosen(free)[0])
    for kind in (Sampler, TransformersGenerate):
        stopped = responder(kind(6, stop_strings=[last]), 1, temperature=0.0)
        assert chosen(stopped)[0] == chosen(free)[0]
        assert len(chosen(stopped)[0]) == 6
        assert not stopped.truncated[0]
        assert stopped.responses[0] == ""


def test_the_text_ends_before_the_first_of_several_strings() -> None:
    assert before_stop_string("a b c", ["c", "b"]) == "a "
    assert before_stop_string("a b c", ["x"]) == "a b c"


@pytest.mark.parametrize("strings", [["a", ""], "abc", "", [3]])
def test_strings_that_cannot_be_are_refused(strings: Any) -> None:
    for kind in (Sampler, TransformersGenerate):
        with pytest.raises(UserError, match=r"generation.stop_strings is .*; it is a list of texts") as error:
            kind(stop_strings=strings)
        assert "\n" not in str(error.value)


def test_generated_counts_as_stopped_by_tokens_too(responder: Any) -> None:
    free = responder(Sampler(24))
    by_token = [ids[-1] in responder.encoder.stop_tokens for ids in chosen(free)]
    assert free.truncated.tolist() == [not stopped for stopped in by_token]

"""Rows of a data set as token ids: where a response ends, what is cut, and which way padding goes."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoder, left_padded, recorded_rows, right_padded

TALK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tokenizer, [2])


def test_a_recorded_response_ends_with_one_stop_token(encoder: Encoder) -> None:
    plain = encoder.tokenizer("the cat")["input_ids"]
    assert encoder.response("say", "the cat") == [*plain, 2]
    assert encoder.response("say", "the cat<eos>") == [*plain, 2]
    assert encoder.response(TALK, "the cat") == [*plain, 2]  # whose template writes it


def test_the_stop_token_that_a_template_writes_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = copy.deepcopy(tokenizer)
    turns.chat_template = "{% for message in messages %}{{ message['content'] }}!\n{% endfor %}"
    end = turns.get_vocab()["!"]  # as Gemma's <end_of_turn>, which its models write and which is not its <eos>
    assert Encoder(turns, [2, end]).response(TALK, "the cat") == [*turns("the cat")["input_ids"], end]


def test_a_pair_that_has_no_room_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for length in (0, -3):
        with pytest.raises(UserError, match=f"max_length is {length}; it must be at least 2"):
            Encoder(tokenizer, [2]).pair([5, 6], [7, 2], length)


def test_of_two_stop_tokens_that_a_template_writes_the_first_is_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = copy.deepcopy(tokenizer)  # as Phi-3's: <|end|> and a newline after every turn, <|endoftext|> after all
    turns.chat_template = (
        "{% for message in messages %}{{ message['content'] }}!\n{% endfor %}"
        "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    stop = turns("!")["input_ids"][0]
    encoder = Encoder(turns, [2, stop])
    assert encoder.response(TALK, "the cat") == [*turns("the cat")["input_ids"], stop]
    several = [{"role": role, "content": role} for role in ("assistant", "user", "assistant")]
    assert encoder.response(TALK, several) == turns("assistant!\nuser!\nassistant!")["input_ids"]
    assert Encoder(turns, [2]).response(TALK, "the cat") == [*turns("the cat!\n")["input_ids"], 2]


def test_an_empty_prompt_is_a_token(encoder: Encoder, tokenizer: PreTrainedTokenizerFast) -> None:
    assert encoder.prompt("") == [1]
    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    assert Encoder(without, [2]).prompt("") == [0]


def test_a_dialogue_is_cut_between_prompt_and_answer(encoder: Encoder) -> None:
    prompt, response = encoder.prompt(TALK), encoder.response(TALK, "the cat")
    assert encoder.tokenizer.decode(prompt) == "user: hello\nassistant: "
    assert encoder.tokenizer.decode(prompt + response) == "user: hello\nassistant: the cat<eos>"


def test_a_pair_loses_the_beginning_of_its_prompt_then_the_end_of_its_response(encoder: Encoder) -> None:
    prompt, response = [5, 6, 7, 8], [9, 10, 2]
    assert encoder.pair(prompt, response, 7) == (prompt, response)
    assert encoder.truncated_counts == {}
    assert encoder.pair(prompt, response, 5) == ([7, 8], response)
    assert encoder.pair(prompt, response, 3) == ([8], [9, 10])
    assert encoder.truncated_counts == {"pairs of prompt and response": 2}
    encoder.max_prompt_length = 2
    whole = encoder.tokenizer("please say hello")["input_ids"]
    assert encoder.prompt("please say hello") == whole[-2:]


def test_prompts_end_and_responses_begin_in_the_same_column() -> None:
    tokens, mask = left_padded([[5], [6, 7, 8]], pad=0)
    assert tokens.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    tokens, mask = right_padded([[5], [6, 7, 8]], pad=0)
    assert tokens.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]


def test_the_stop_token_counts_also_where_it_is_what_rows_are_padded_with() -> None:
    rows = recorded_rows([[5], [6, 7]], [[8, 2], [9, 10, 11]], [0, 0], stop_tokens=[2], pad=2)
    assert rows.tokens.tolist() == [[2, 5, 8, 2, 2], [6, 7, 9, 10, 11]]
    assert rows.mask.tolist() == [[True, True, False], [True, True, True]]
    assert rows.prompt_mask.tolist() == [[False, True], [True, True]]
    assert torch.equal(rows.truncated, torch.tensor([False, True]))

"""Log-probabilities and scores of recorded rows against plain transformers, which knows nothing of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import KINDS
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rlhf_lightning.data import PreferenceData
from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rewards import ModelReward
from rlhf_lightning.rollouts.preferences import encode_pairs
from rlhf_lightning.rollouts.reference_cache import ReferenceCache, content_keys
from rlhf_lightning.types import Completions


def u(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def folder_of(path: Path, kind: str) -> str:
    tokenizer = KINDS[kind]()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def plain_logprobs(folder: str, ids: list[int], learned: list[int]) -> torch.Tensor:
    """Of the tokens at `learned` places, each given all before it; by transformers alone."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]
    places = torch.tensor(learned)
    return logits.log_softmax(-1)[places - 1, torch.tensor(ids)[places]]


def template_ids(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


def rows_of(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    path.write_text(json.dumps(row) + "\n")
    data = PreferenceData(train=str(path), validation_fraction=0)
    data.setup("fit")
    assert data.train_rows is not None
    return data.train_rows


def learned_ids(tokenizer: Any, talk: list[dict[str, Any]], first: int) -> tuple[list[int], list[int]]:
    """Ids of a conversation and the places of the assistant's tokens from message `first` on, stop tokens included."""
    whole, places = template_ids(tokenizer, talk), []
    for number in range(first, len(talk)):
        if talk[number]["role"] == "assistant":
            start = len(template_ids(tokenizer, talk[:number], add_generation_prompt=True))
            places += list(range(start, whole.index(tokenizer.eos_token_id, start) + 1))
    return whole[: places[-1] + 1], places


PAIRS = {
    "a text as prompt that the answers repeat": (
        {"prompt": "Q1", "chosen": [u("Q1"), a("good")], "rejected": [u("Q1"), a("bad")]},
        [[u("Q1"), a("good")], [u("Q1"), a("bad")]],
    ),
    "several turns": (
        {"chosen": [u("q"), a("good"), u("MORE"), a("fine")], "rejected": [u("q"), a("bad"), u("WHY"), a("no")]},
        [[u("q"), a("good"), u("MORE"), a("fine")], [u("q"), a("bad"), u("WHY"), a("no")]],
    ),
}


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_with_space"])
@pytest.mark.parametrize("name", PAIRS)
def test_log_probabilities_of_a_pair_are_those_of_the_template_text(kind: str, name: str, tmp_path: Path) -> None:
    folder, tokenizer = folder_of(tmp_path / "model", kind), KINDS[kind]()
    row, talks = PAIRS[name]
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    rows = rows_of(tmp_path / "rows.jsonl", row)
    assert rows[0]["prompt"] == row.get("prompt", [u("q")])  # the column stays what the file says
    pairs = encode_pairs(encoder, rows, None)
    with torch.no_grad():
        policy = Policy(AutoModelForCausalLM.from_pretrained(folder))
        found = policy(pairs).logprobs
        cache = ReferenceCache(tmp_path / "cache.safetensors", resumed=False)
        cache.fill(lambda rows: policy(rows).logprobs, [pairs])
    kept = cache.logprobs(pairs.tokens, pairs.prompt_mask, pairs.mask, 1.0)
    for i, talk in enumerate(talks):
        expected = plain_logprobs(folder, *learned_ids(tokenizer, talk, 1))
        torch.testing.assert_close(found[i][pairs.mask[i]], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kept[i][pairs.mask[i]], expected, rtol=1e-4, atol=1e-4)
        assert found[i][~pairs.mask[i]].eq(0).all()


def test_a_truncated_pair_is_behind_one_prompt_also_for_the_model(tmp_path: Path) -> None:
    folder, tokenizer = folder_of(tmp_path / "model", "byte_level"), KINDS["byte_level"]()
    row = {"prompt": [u("x" * 60)], "chosen": [a("good")], "rejected": [a("a much longer one indeed")]}
    pairs = encode_pairs(Encoder(tokenizer, [tokenizer.eos_token_id]), rows_of(tmp_path / "r.jsonl", row), 48)
    with torch.no_grad():
        found = Policy(AutoModelForCausalLM.from_pretrained(folder))(pairs).logprobs
    prompt = template_ids(tokenizer, row["prompt"], add_generation_prompt=True)
    answers = [
        learned_ids(tokenizer, [*row["prompt"], *row[name]], 1)[0][len(prompt) :] for name in ("chosen", "rejected")
    ]
    kept = prompt[len(prompt) - 48 + max(map(len, answers)) :]
    for i, answer in enumerate(answers):
        ids = kept + answer
        expected = plain_logprobs(folder, ids, list(range(len(kept), len(ids))))
        torch.testing.assert_close(found[i][pairs.mask[i]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [" yes", "    return x + 1\n", "yes"])
def test_a_reward_model_scores_the_tokens_that_were_generated(text: str, tmp_path: Path) -> None:
    tokenizer = KINDS["byte_level"]()
    causal = AutoModelForCausalLM.from_pretrained(folder_of(tmp_path / "model", "byte_level"))
    causal.config.num_labels = 1
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(causal.config).eval()
    plain.score.weight.data.normal_(0, 1)
    plain.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    prompt = "Human: hi\n\nAssistant:"
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    ids = encoder.response(prompt, text)
    generated = torch.tensor([ids])
    rows = recorded_rows([encoder.prompt(prompt)], [ids], [0], encoder.stop_tokens, 0)
    seen = encoder.decode(generated, torch.ones_like(generated).bool())[0]
    assert seen == text
    given = {name: getattr(rows, name) for name in ("tokens", "prompt_mask", "mask", "groups", "truncated")}
    completions = Completions(**given, prompts=[prompt], responses=[seen], columns={"prompt": [prompt]})
    reward = ModelReward(str(tmp_path / "rm"))
    reward.check()
    reward.load(torch.device("cpu"))
    expected = tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        score = plain(torch.tensor([expected])).logits.item()
    assert reward(completions)[0] == pytest.approx(score, abs=1e-4)
    assert abs(plain(torch.tensor([tokenizer(prompt + "no")["input_ids"] + [3]])).logits.item() - score) > 1e-3


def test_generated_text_is_scored_as_a_message_also_where_a_template_puts_a_space_before_it() -> None:
    import copy

    from rlhf_lightning.models.chat_templates import TEMPLATES

    tokenizer = copy.deepcopy(KINDS["byte_level"]())
    tokenizer.chat_template = TEMPLATES["dialogue"]
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    recorded = encoder.response([u("hi")], "yes")
    assert tokenizer.decode(recorded) == " yes<|im_end|>"
    assert encoder.generated([u("hi")], " yes") == recorded  # of a policy with this template
    assert encoder.generated([u("hi")], "yes") == recorded  # of one without the space


def test_a_reference_is_kept_for_tokens_and_for_which_of_them_are_learned() -> None:
    first, second = (
        content_keys(recorded_rows([[5]], [[6, 7, 8, 2]], [0], [2], 0, [mask]))
        for mask in ([True, True, True, True], [True, False, False, True])
    )
    assert first != second

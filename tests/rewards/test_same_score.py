"""A response has the same tokens and score where a reward model learns it and where it scores a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_generation import generated, reward_model
from tiny_tokenizers import KINDS

from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import FunctionReward, ModelReward, PatternReward, ResponseText
from rlhf_lightning.stages.reward import RewardStage

TEXTS = ["yes", " yes", "    return x + 1\n", "<think>hm</think> The answer", "hi  \n\n there ", "caf\u00e9 \U0001f642"]


@pytest.mark.parametrize(
    "prompt", ["Human: hi\n\nAssistant:", [{"role": "user", "content": "hi"}]], ids=["text", "messages"]
)
@pytest.mark.parametrize(("kind", "template"), [*((kind, None) for kind in KINDS), ("byte_level", "dialogue")])
def test_a_recorded_response_has_one_score(kind: str, template: str | None, prompt: Any, tmp_path: Path) -> None:
    folder = reward_model(tmp_path, kind, template)
    stage = RewardStage(ModelConfig(folder))
    stage.text.load()
    stage.configure_model()
    reward = ModelReward(folder)
    reward.check()
    reward.load(torch.device("cpu"))
    learned = stage.encode([{"prompt": prompt, "chosen": text, "rejected": "no"} for text in TEXTS]).rows(
        torch.arange(0, 2 * len(TEXTS), 2)
    )
    width = learned.prompt_mask.shape[1]
    ids = [row[width:][kept].tolist() for row, kept in zip(learned.tokens, learned.mask, strict=True)]
    completions = generated(stage, prompt, ids)
    again = [reward._encode(prompt, text, False)[1] for text in completions.responses]
    assert again == ids
    with torch.no_grad():
        expected = stage(learned)
    torch.testing.assert_close(torch.tensor(reward(completions)), expected, rtol=1e-5, atol=1e-5)
    assert len(set(expected.tolist())) >= len(TEXTS) - 2  # else every text would have the score of another
    stopped = [row[-1] == stage.text.encoder.stop_tokens[0] for row in ids]
    assert stopped == [True] * len(TEXTS) == [not each for each in completions.truncated.tolist()]


@pytest.mark.parametrize(
    "kind", ["byte_level", "tiktoken_like", "sentencepiece_with_space", "sentencepiece_without_space"]
)
def test_responses_are_the_text_that_was_generated(kind: str, tmp_path: Path) -> None:
    stage = RewardStage(ModelConfig(reward_model(tmp_path, kind, None)))
    stage.text.load()
    prompt, encoder = "Human: hi\n\nAssistant:", stage.text.encoder
    completions = generated(stage, prompt, [encoder.response(prompt, text) for text in TEXTS])
    stop = encoder.tokenizer.eos_token
    assert completions.responses == TEXTS
    assert completions.texts() == TEXTS
    assert completions.texts(stop_token=True) == [text + stop for text in TEXTS]
    bare = [text.replace("<think>", "").replace("</think>", "") for text in TEXTS]
    assert completions.texts(skip_special_tokens=True) == bare
    assert completions.texts(strip=True) == [text.strip() for text in TEXTS]
    assert completions.texts(skip_special_tokens=True, strip=True) == [text.strip() for text in bare]


def test_the_space_between_two_words_is_in_no_response(tmp_path: Path) -> None:
    stage = RewardStage(ModelConfig(reward_model(tmp_path, "wordpiece_like", None)))
    stage.text.load()
    ids = stage.text.encoder.tokenizer("hello world", add_special_tokens=False)["input_ids"]
    completions = generated(stage, "the answer is", [ids])
    assert completions.responses == ["hello world"]


def test_a_stop_token_that_is_text_stays_and_only_the_last_special_one_goes(tmp_path: Path) -> None:
    stage = RewardStage(ModelConfig(reward_model(tmp_path, "byte_level", None)))
    stage.text.load()
    tokenizer, (stop, *_) = stage.text.encoder.tokenizer, stage.text.encoder.stop_tokens
    period, think = tokenizer.convert_tokens_to_ids([".", "<think>"])
    stage.text.encoder.stop_tokens.append(period)
    completions = generated(stage, "p", [[period, period], [think, stop, stop], [think], [stop]])
    end = tokenizer.eos_token
    assert completions.responses == ["..", f"<think>{end}", "<think>", ""]
    assert completions.truncated.tolist() == [False, False, True, False]
    text = tokenizer("4 apples. Q: more")["input_ids"]
    ended = generated(stage, "p", [text], ("Q:", "apple"))
    assert ended.responses == ["4 "]
    assert ended.texts(stop_token=True) == ["4 apples. Q: more"]


def test_a_function_gets_what_its_parameters_name(tmp_path: Path) -> None:
    stage = RewardStage(ModelConfig(reward_model(tmp_path, "sentencepiece_with_space", None)))
    stage.text.load()
    prompt = [{"role": "user", "content": "hi", "name": "ann"}]
    ids = [
        stage.text.encoder.response(prompt, "<think>hm</think> The"),
        stage.text.encoder.response(prompt, " hi ")[:-1],
    ]
    completions = generated(stage, prompt, ids)
    found: dict[str, Any] = {}

    def rate(  # type: ignore[no-untyped-def]  # as users write it
        responses, raw_responses, plain_responses, token_ids, messages, truncated, prompts
    ):
        found.update(locals())
        messages[0][0]["content"] = token_ids[0][0] = None  # changes nothing that others read
        return [0.0] * len(responses)

    reward = FunctionReward(rate)
    reward.check_columns({"prompt"}, "train data")
    assert reward(completions) == [0.0, 0.0]
    assert found["responses"] == ["<think>hm</think> The", " hi "]
    assert found["raw_responses"] == ["<think>hm</think> The</s>", " hi "]
    assert found["plain_responses"] == ["hm The", "hi"]
    assert found["truncated"] == [False, True]
    assert [row[1:] for row in found["token_ids"]] == [row[1:] for row in ids]
    assert found["messages"][1] == [*prompt, {"role": "assistant", "content": " hi "}]
    assert completions.columns["prompt"] == [prompt, prompt] == [[{"role": "user", "content": "hi", "name": "ann"}]] * 2
    assert found["prompts"] == ["<|user|>\nhi</s>\n<|assistant|>\n"] * 2


def test_another_text_for_a_reward_is_a_choice(tmp_path: Path) -> None:
    stage = RewardStage(ModelConfig(reward_model(tmp_path, "byte_level", None)))
    stage.text.load()
    encoder = stage.text.encoder
    completions = generated(stage, "p", [encoder.response("p", text) for text in ("<think>yes", " yes ", "yes")])
    pattern = PatternReward("^yes$")
    assert pattern(completions) == [0.0, 0.0, 1.0]
    assert ResponseText(pattern, strip=True)(completions) == [0.0, 1.0, 1.0]
    assert ResponseText(pattern, skip_special_tokens=True)(completions) == [1.0, 0.0, 1.0]
    assert ResponseText(pattern, skip_special_tokens=True, strip=True)(completions) == [1.0, 1.0, 1.0]
    ends = PatternReward(r"<\|im_end\|>$")
    assert ends(completions) == [0.0] * 3
    assert ResponseText(ends, stop_token=True)(completions) == [1.0] * 3

"""`ModelReward` against transformers, and models that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from completions import completions
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_reward_model
from rlhf_lightning.models.reward_model import set_normalization
from rlhf_lightning.rewards import (
    ModelReward,
)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_reward_model_scores_as_transformers_does(
    tmp_path: Path, tiny_model_folder: Callable[[str], str], arch: str
) -> None:
    model = load_reward_model(ModelConfig(name_or_path=tiny_model_folder(arch)))
    set_normalization(model, mean=0.5, deviation=2.0)
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    reward = ModelReward(str(tmp_path), tokenizer=tiny_model_folder(arch), batch_size=2)
    reward.check()
    reward.load(torch.device("cpu"))
    rows = completions(["hello dog", "cat", "thank you little dog"], ["say ", "please say ", "to the "])
    found = reward(rows)
    tokenizer, stop = reward.encoder.tokenizer, reward.encoder.stop_tokens[0]
    for prompt, response, value in zip(rows.prompts, rows.responses, found, strict=True):
        ids = reward.encoder.prompt(prompt) + tokenizer(response, add_special_tokens=False)["input_ids"] + [stop]
        expected = (plain(input_ids=torch.tensor([ids])).logits.item() - 0.5) / 2.0
        assert value == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="does not exist"):
        ModelReward("./nowhere").check()


def test_a_language_model_is_no_reward_and_a_reward_model_no_policy() -> None:
    ModelReward("playground/reward").check()
    with pytest.raises(UserError, match=r"ModelReward.batch_size is -1; set it to 1 or more"):
        ModelReward("playground/reward", batch_size=-1).check()
    with pytest.raises(UserError, match=r"playground/sft, a language model \(LlamaForCausalLM\) .*reward.yaml"):
        ModelReward("playground/sft").check()
    with pytest.raises(UserError, match=r"playground/reward is a classifier \(LlamaForSequenceClassification\)"):
        load_causal_lm(ModelConfig("playground/reward"))

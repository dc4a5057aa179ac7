from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import LoraOptions, ModelConfig, load_causal_lm, load_reward_model, load_tokenizer
from rlhf_lightning.models.reward_model import normalize_scores, score_sequences, set_normalization
from tests.conftest import ARCHITECTURES

Folder = Callable[[str], str]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_score_is_read_at_the_last_token_whatever_pads_it(tiny_model_folder: Folder, arch: str) -> None:
    model = load_reward_model(ModelConfig(tiny_model_folder(arch)))
    tokens = [5, 9, 17, 2]  # the stop token at its end, which is the pad token too
    ones = torch.ones(1, 4, dtype=torch.bool)
    pad = torch.full((1, 3), 2)
    off = torch.zeros(1, 3, dtype=torch.bool)
    row = torch.tensor([tokens])
    with torch.no_grad():
        alone = score_sequences(model, row, ones)
        right = score_sequences(model, torch.cat([row, pad], 1), torch.cat([ones, off], 1))
        left = score_sequences(model, torch.cat([pad, row], 1), torch.cat([off, ones], 1))
        hidden = model.base_model(input_ids=row, attention_mask=ones.long()).last_hidden_state[0, -1]
        expected = (model.score.weight @ hidden).float()
    assert alone.shape == (1,)
    assert torch.allclose(alone, expected, atol=1e-6)
    assert torch.allclose(right, alone, atol=1e-5)
    assert torch.allclose(left, alone, atol=1e-5)


def test_scores_agree_with_transformers_where_pad_is_not_the_stop_token(tiny_model_folder: Folder) -> None:
    model = load_reward_model(ModelConfig(tiny_model_folder("llama")))
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = tokens != 0
    with torch.no_grad():
        plain = model(input_ids=tokens, attention_mask=mask.long()).logits.squeeze(-1)
        assert torch.allclose(score_sequences(model, tokens, mask), plain, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoraOptions(r=2)])
def test_head_and_normalisation_are_saved(tiny_model_folder: Folder, tmp_path: Path, lora: LoraOptions | None) -> None:
    config = ModelConfig(tiny_model_folder("gpt2"), lora=lora, seed=4)
    model = load_reward_model(config)
    tokens, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    assert float(normalize_scores(model, torch.tensor([3.0]))) == 3.0
    set_normalization(model, 1.5, 0.25)
    assert float(normalize_scores(model, torch.tensor([3.0]))) == 6.0
    export_model(model, load_tokenizer(config), tmp_path / "export", [2])
    again = load_reward_model(ModelConfig(str(tmp_path / "export")))
    assert (again.config.score_mean, again.config.score_std) == (1.5, 0.25)
    assert float(normalize_scores(again, torch.tensor([3.0]))) == 6.0
    with torch.no_grad():
        assert torch.equal(score_sequences(again, tokens, mask), score_sequences(model, tokens, mask))
    fresh = load_reward_model(dataclasses.replace(config, seed=5))
    assert not torch.equal(score_sequences(fresh, tokens, mask), score_sequences(model, tokens, mask))


def test_a_reward_model_from_the_adapter_of_a_language_model_is_told_to_merge_it(
    tiny_model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(tiny_model_folder("llama"), lora=LoraOptions(r=2))
    export_model(load_causal_lm(config), load_tokenizer(config), tmp_path / "sft", [2])
    with pytest.raises(UserError, match="adapter of a language model") as refused:
        load_reward_model(ModelConfig("sft"))
    command = str(refused.value).split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", command], check=True, capture_output=True)
    assert load_reward_model(ModelConfig("merged", tokenizer="sft")).config.num_labels == 1

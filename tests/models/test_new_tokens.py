"""Tokens that are added to a vocabulary have an embedding that trains, and are in the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import recorded_rows
from rlhf_lightning.models.export import export_model
from rlhf_lightning.models.loading import (
    LoraOptions,
    ModelConfig,
    load_causal_lm,
    load_model_config,
    load_tokenizer,
    stop_token_ids,
)
from rlhf_lightning.models.policy import Policy

NEW = ["<|im_start|>", "<|im_end|>"]


def config_of(folder: str, lora: LoraOptions | None) -> ModelConfig:
    return ModelConfig(
        name_or_path=folder, new_tokens=NEW, chat_template="chatml", stop_tokens=["<|im_end|>"], lora=lora
    )


@pytest.mark.parametrize("arch", ["llama", "gpt2"])  # gpt2 ties its head to its embedding
@pytest.mark.parametrize("adapter", [False, True])
def test_new_tokens_are_learned_and_exported(
    arch: str, adapter: bool, tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    saved = {"llama": ["embed_tokens", "lm_head"], "gpt2": ["wte"]}[arch]
    config = config_of(tiny_model_folder(arch), LoraOptions(r=2, modules_to_save=saved) if adapter else None)
    tokenizer = load_tokenizer(config)
    stops = stop_token_ids(tokenizer, load_model_config(config), config)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stops == [2, end]
    model, reference = load_causal_lm(config), load_causal_lm(config)
    rows = recorded_rows([[5, end - 1]], [[6, end]], [0], stops, tokenizer.pad_token_id)
    policy = Policy(model)
    before = policy(rows).logprobs.detach()
    assert torch.equal(before, Policy(reference)(rows).logprobs.detach())  # a reference begins with the same embeddings
    optimizer = torch.optim.Adam([x for x in policy.parameters() if x.requires_grad], lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        (-policy(rows).logprobs.sum()).backward()
        optimizer.step()
    after = policy(rows).logprobs.detach()
    assert (after > before + 1).all()
    export_model(model, tokenizer, tmp_path / "export", stops)
    loaded = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(tmp_path / "export")
    ids = torch.tensor([[5, end - 1, 6, end]])
    with torch.no_grad():
        plain = loaded(ids).logits.log_softmax(-1)[0, [1, 2], [6, end]]
    torch.testing.assert_close(plain, after[0], rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "export").convert_tokens_to_ids("<|im_end|>") == end
    again = ModelConfig(name_or_path=str(tmp_path / "export"))
    stop_token_ids(load_tokenizer(again), load_model_config(again), again)
    with torch.no_grad():
        torch.testing.assert_close(Policy(load_causal_lm(again))(rows).logprobs, after, rtol=1e-4, atol=1e-4)


def test_tokens_that_are_there_change_nothing(tiny_model_folder: Callable[[str], str]) -> None:
    folder = tiny_model_folder("llama")
    plain, same = (load_causal_lm(ModelConfig(name_or_path=folder, new_tokens=new)) for new in ([], ["<eos>"]))
    assert torch.equal(plain.get_input_embeddings().weight, same.get_input_embeddings().weight)


def test_embeddings_that_would_not_train_are_refused(tiny_model_folder: Callable[[str], str]) -> None:
    folder = tiny_model_folder("llama")
    with pytest.raises(UserError, match=r"a LoRA adapter trains no embedding; set lora\.modules_to_save"):
        config_of(folder, LoraOptions())
    with pytest.raises(UserError, match="the model's embedding 'embed_tokens' does not train"):
        load_causal_lm(config_of(folder, LoraOptions(modules_to_save=["lm_head"])))
    with pytest.raises(UserError, match="'embed_token', which is no layer of the model; did you mean 'embed_tokens'"):
        load_causal_lm(config_of(folder, LoraOptions(modules_to_save=["embed_token"])))

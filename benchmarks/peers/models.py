"""The folders that both sides load: Llamas with random weights that never end a response, and their tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from peers.work import SIZES, Size

SPECIAL = ["<pad>", "<bos>", "<eos>"]
LEARNED = 4096
"""Tokens that are learned from text at most; a larger vocabulary is filled up with tokens that no text has."""


def build(folder: Path, name: str, texts: list[str]) -> Path:
    """`folder/name` with a language model and `folder/name-reward` with a reward model on the same backbone, once."""
    found = folder / name
    if not (found / "done").exists():
        size, tokenizer = SIZES[name], _tokenizer(SIZES[name], texts)
        policy = _language_model(size)
        scorer = LlamaForSequenceClassification(LlamaConfig(**policy.config.to_diff_dict() | {"num_labels": 1}))
        scorer.model.load_state_dict(policy.model.state_dict())
        for path, model in ((found, policy), (reward_folder(found), scorer)):
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        (found / "done").touch()
    return found


def reward_folder(policy: Path) -> Path:
    return policy.with_name(f"{policy.name}-reward")


def _language_model(size: Size) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    _never_end(model)
    return model


@torch.no_grad()
def _never_end(model: Any) -> None:
    """Make the special tokens' logits about -50 for any text: all responses are as long as allowed, on both sides.

    The first coordinate of the hidden state is the same positive number throughout, as no layer writes to it, and the
    special tokens' rows of the head are large and negative there.
    """
    model.model.embed_tokens.weight[:, 0] = 0.5
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    model.lm_head.weight[: len(SPECIAL), 0] = -5


def _tokenizer(size: Size, texts: list[str]) -> PreTrainedTokenizerFast:
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    learned.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=min(size.vocabulary, LEARNED),
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    generated = json.loads(learned.to_str())
    vocabulary = generated["model"]["vocab"]
    vocabulary |= {f"<unused {i}>": i for i in range(len(vocabulary), size.vocabulary)}
    whole = Tokenizer.from_str(json.dumps(generated))
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )

"""A generator that repeats given tokens, and a tiny reward model with the same tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizers import KINDS
from torch import nn
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rlhf_lightning.generation.base import Generator
from rlhf_lightning.models.chat_templates import TEMPLATES
from rlhf_lightning.models.encoding import right_padded
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.types import Completions, Generated, GenerationRequest


class Recorded(Generator):
    """Generates given token ids."""

    def __init__(self, ids: list[list[int]], stop_strings: tuple[str, ...] = ()) -> None:
        self.ids, self.max_new_tokens, self.temperature = ids, 64, 1.0
        self.top_p, self.top_k, self.min_p, self.stop_strings = 1.0, 0, 0.0, stop_strings

    def generate(self, request: GenerationRequest) -> Generated:
        tokens, mask = right_padded(self.ids, request.params.pad_token)
        return Generated(tokens, mask, torch.tensor([ids[-1] in request.params.stop_tokens for ids in self.ids]), None)


def reward_model(folder: Path, kind: str, template: str | None) -> str:
    """A classifier with random weights whose tokenizer has special tokens for reasoning."""
    tokenizer = copy.deepcopy(KINDS[kind]())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.chat_template = TEMPLATES.get(template or "", tokenizer.chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for each in (folder, folder / "policy"):
        tokenizer.save_pretrained(each)
    return str(folder)


def generated(stage: RewardStage, prompt: Any, ids: list[list[int]], stop_strings: tuple[str, ...] = ()) -> Completions:
    """What a policy with the same tokenizer gives to rewards after it generated the ids."""
    responder = ResponseGenerator(Policy(nn.Linear(1, 1)), Recorded(ids, stop_strings), stage.text.encoder)
    rows = [{"prompt": prompt}] * len(ids)
    return responder.generate(rows, 1, Randomness(0, 0, tuple(range(len(ids)))))

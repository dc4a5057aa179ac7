"""The tiny models and fixed rows that TRL's numbers were made with, and what is recorded of a gradient; needs no TRL.

Weights come from a formula, not from a random generator, so that no release of torch or transformers changes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

ARCHITECTURE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROLES = {"policy": 0.0, "old": 0.1, "reference": 0.2, "critic": 0.3, "reward": 0.6}
"""How far a role's weights are from the policy's, in the unit of `weights_of`."""

RECORDED_WEIGHTS = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.embed_tokens.weight",
)
RECORDED_ENTRIES = (163, 225, 318, 740)
"""Flat places of the entries that are recorded of each gradient; in the embedding they are of the tokens 5, 7, 9 and 23."""

PROMPTS = [[22, 5, 9, 13], [18, 7]]
RESPONSES = [[[4, 8, 15, 16, 2], [23, 3, 2], [30, 11, 12, 9, 6]], [[6, 2], [10, 21, 17, 2], [19, 25, 14, 28, 31]]]
"""Three responses to each prompt; 2 is the stop token, so the last of each was cut off."""
LABELS = [True, False, False, True]
"""Of the first two responses to each prompt, for KTO."""
SCORES = [[1.0, -0.5, 0.25], [2.0, 0.5, -1.5]]
SECOND_SCORES = [0.1, 0.9, 0.4, -2.0, 3.0, 3.5]
"""Of the same responses, by a second reward."""
OVERLONG = [[3] * length for length in (1, 3, 4, 6, 8)]
"""Responses of several lengths, for a penalty on them."""


def weights_of(shape: torch.Size, place: int, shift: float) -> Tensor:
    """float32 weights of the parameter that is the `place`-th by name: 0.25 (sin φ + shift cos 3φ), φ = (place + 1) i^1.5.

    i counts the entries from 1. Norms (one dimension) are 1 plus that.
    """
    phase = (place + 1) * torch.arange(1, shape.numel() + 1, dtype=torch.float64) ** 1.5
    weights = (0.25 * (phase.sin() + shift * (3 * phase).cos())).reshape(shape)
    return (weights + (len(shape) == 1)).float()


def set_weights(model: nn.Module, role: str) -> None:
    """Overwrite every parameter of `model` with those of a role."""
    for place, (_, parameter) in enumerate(sorted(model.named_parameters())):
        parameter.data.copy_(weights_of(parameter.shape, place, ROLES[role]))


def language_model(role: str) -> LlamaForCausalLM:
    """The tiny language model of a role."""
    model = LlamaForCausalLM(LlamaConfig(**ARCHITECTURE, tie_word_embeddings=False))
    set_weights(model, role)
    return model


def scorer(role: str) -> LlamaForSequenceClassification:
    """The tiny model with one output of a role."""
    model = LlamaForSequenceClassification(LlamaConfig(**ARCHITECTURE, num_labels=1))  # type: ignore[call-arg]
    set_weights(model, role)
    return model


def gradient_of(model: nn.Module) -> dict[str, Any]:
    """The norm of the whole gradient and a few entries of it; `model` has had its backward pass."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.sqrt(sum(g.double().square().sum() for g in gradients.values()))  # type: ignore[arg-type]
    entries = {name: gradients[name].flatten()[list(RECORDED_ENTRIES)].tolist() for name in RECORDED_WEIGHTS}
    return {"norm": float(norm), "entries": entries}

"""Reading the score of a sequence classifier, and the normalisation that it carries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.policy import language_model, positions

NORMALIZATION_FILE = "score_normalization.json"
"""Beside a reward model's adapter, which has no config of its own; a whole model keeps the numbers in its config."""


def score_sequences(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """float32 [B]: the score at the last token of each row under `mask` bool [B, L], whatever pads it and on whichever side.

    transformers looks for the last token that is not the pad token, and goes one too far where pad is the stop token.
    """
    lm: Any = language_model(model)
    hidden = lm.base_model(
        input_ids=tokens, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False
    ).last_hidden_state
    last = (mask.long() * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
    head = getattr(lm, "score", None) or lm.classifier
    scores = head(hidden[torch.arange(len(tokens), device=tokens.device), last])
    return scores.float().squeeze(-1)


class RewardModel(nn.Module):
    """A sequence classifier with one output that scores token ids."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """float32 [B]; see `score_sequences`."""
        return score_sequences(self.model, tokens, mask)


def normalization_of(model: nn.Module) -> dict[str, float]:
    """`score_mean` and `score_std` where the model has them, else nothing."""
    config = language_model(model).config
    return {name: float(getattr(config, name)) for name in ("score_mean", "score_std") if hasattr(config, name)}


def normalized(model: nn.Module, scores: Tensor) -> Tensor:
    """Scores with the mean and deviation that were saved with the model taken off."""
    config = language_model(model).config
    return (scores - getattr(config, "score_mean", 0.0)) / getattr(config, "score_std", 1.0)


def set_normalization(model: nn.Module, mean: float, deviation: float) -> None:
    """Keep mean and deviation of the scores in the model's config, which is saved with it."""
    config = language_model(model).config
    config.score_mean, config.score_std = mean, max(deviation, 1e-6)

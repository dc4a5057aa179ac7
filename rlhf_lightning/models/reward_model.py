"""Reading the score of a sequence classifier, and the normalisation that it carries."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.backbone import backbone_of, language_model, supports_packing
from rlhf_lightning.models.packed_forward import final_hidden_states, in_micro_batches
from rlhf_lightning.types import Rows

NORMALIZATION_FILE = "score_normalization.json"
"""Beside a reward model's adapter, which has no config of its own; a whole model keeps the numbers in its config."""


def score_sequences(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """float32 [B]: the score at the last token of each row under `mask` bool [B, L], whatever pads it and on whichever side."""
    none = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return score_rows(model, Rows(tokens, mask, mask[:, :0], none, none.bool()))


def score_rows(model: nn.Module, rows: Rows) -> Tensor:
    """float32 [B]: the score at the last token of each response, or of the prompt where the response is empty.

    transformers looks for the last token that is not the pad token, and goes one too far where pad is the stop token.
    """
    lm: Any = language_model(model)

    def measure(part: Rows) -> tuple[Tensor]:
        return (lm.score(final_hidden_states(lm.base_model, part)).float().squeeze(-1),)

    return cast(Tensor, in_micro_batches(lm.base_model, rows, measure)[0])


class RewardModel(nn.Module):
    """A sequence classifier with one output that scores responses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Rows) -> Tensor:
        """float32 [B]; see `score_rows`."""
        return score_rows(self.model, rows)

    def probe_capabilities(self) -> None:
        """Find out whether rows may share lines; a method of the model so that sharding can hook it."""
        for backbone in self.backbones():
            supports_packing(backbone)

    def backbones(self) -> list[Any]:
        """The classifier's, as the only one."""
        return [backbone_of(self.model)]


def score_normalization(model: nn.Module) -> dict[str, float]:
    """`score_mean` and `score_std` where the model has them, else nothing."""
    config = language_model(model).config
    return {name: float(getattr(config, name)) for name in ("score_mean", "score_std") if hasattr(config, name)}


def normalize_scores(model: nn.Module, scores: Tensor) -> Tensor:
    """Scores with the mean and deviation that were saved with the model taken off."""
    config = language_model(model).config
    return (scores - getattr(config, "score_mean", 0.0)) / getattr(config, "score_std", 1.0)


def set_normalization(model: nn.Module, mean: float, deviation: float) -> None:
    """Keep mean and deviation of the scores in the model's config, which is saved with it."""
    config = language_model(model).config
    config.score_mean, config.score_std = mean, max(deviation, 1e-6)

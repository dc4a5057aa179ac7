"""Score responses with a sequence classifier, and normalise the scores."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.backbone import backbone_of, language_model, supports_packing
from rlhf_lightning.models.packed_forward import final_hidden_states, map_micro_batches
from rlhf_lightning.types import Rows

NORMALIZATION_FILE = "score_normalization.json"
"""File in the folder of a reward model's adapter, which has no config; a full model keeps the numbers in its config."""


def score_sequences(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Score each row at its last token under `mask` (bool [B, L]), whatever the padding; float32 [B]."""
    zeros = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return score_rows(model, Rows(tokens, mask, mask[:, :0], zeros, zeros.bool()))


def score_rows(model: nn.Module, rows: Rows) -> Tensor:
    """Score each row at the last token of its response, or of its prompt where the response is empty; float32 [B].

    transformers looks for the last token other than the pad token, which is wrong where the stop token is the pad token.
    """
    scores = score_heads(model, rows)
    return scores.squeeze(-1) if scores.shape[-1] == 1 else scores.mean(-1)


def score_heads(model: nn.Module, rows: Rows) -> Tensor:
    """Score each row by every head; float32 [B, K]. See `score_rows`."""
    lm: Any = language_model(model)

    def score(batch: Rows) -> tuple[Tensor]:
        return (lm.score(final_hidden_states(backbone_of(lm), batch)).float(),)

    return cast(Tensor, map_micro_batches(backbone_of(lm), rows, score)[0])


class RewardModel(nn.Module):
    """Score responses with a sequence classifier of one output, or of one output for each head of an ensemble."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Rows, each_head: bool = False) -> Tensor:
        """Score rows with `score_rows`, float32 [B]; or by each of K heads, float32 [B, K]."""
        return score_heads(self.model, rows) if each_head else score_rows(self.model, rows)

    def probe_capabilities(self) -> None:
        """Probe whether rows may be packed; a method of the model, so that sharding can hook it."""
        for backbone in self.backbones():
            supports_packing(backbone)

    def backbones(self) -> list[Any]:
        """Return the classifier's backbone, the only one."""
        return [backbone_of(self.model)]


def score_normalization(model: nn.Module) -> dict[str, float]:
    """Return `score_mean` and `score_std` where the model has them, else an empty dictionary."""
    config = language_model(model).config
    return {name: float(getattr(config, name)) for name in ("score_mean", "score_std") if hasattr(config, name)}


def normalize_scores(model: nn.Module, scores: Tensor) -> Tensor:
    """Subtract the mean that was saved with the model, and divide by the saved standard deviation."""
    config = language_model(model).config
    return (scores - getattr(config, "score_mean", 0.0)) / getattr(config, "score_std", 1.0)


def set_normalization(model: nn.Module, mean: float, deviation: float) -> None:
    """Set mean and standard deviation of the scores in the model's config, which is saved with the model."""
    config = language_model(model).config
    config.score_mean, config.score_std = mean, max(deviation, 1e-6)

"""Score the steps of responses with a token classifier: a process reward model."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.backbone import backbone_of, language_model
from rlhf_lightning.models.packed_forward import hidden_states_before, map_micro_batches
from rlhf_lightning.types import Rows


def head_of(model: nn.Module) -> Any:
    """Return the head of a token classifier, which transformers calls `score` or `classifier`."""
    lm: Any = language_model(model)
    return lm.score if hasattr(lm, "score") else lm.classifier


def score_tokens(model: nn.Module, rows: Rows, label: int) -> Tensor:
    """Score the state before each token under the mask.

    Args:
        model: a token classifier on a decoder.
        rows: the token behind each state that is to be scored is under the mask; it is not read itself.
        label: output whose probability is the score. A classifier with one output gives that output instead.

    Returns:
        float32 [B, T]; 0 outside the mask.
    """
    head, backbone = head_of(model), backbone_of(model)

    def score(batch: Rows) -> tuple[Tensor]:
        logits = head(hidden_states_before(backbone, batch)).float()
        values = logits.softmax(-1)[:, label] if logits.shape[-1] > 1 else logits[:, 0]
        return (torch.zeros(batch.mask.shape, device=values.device).masked_scatter(batch.mask, values),)

    return cast(Tensor, map_micro_batches(backbone, rows, score)[0])

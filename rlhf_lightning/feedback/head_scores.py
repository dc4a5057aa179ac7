"""Scores of recorded responses by every head of a reward model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.feedback.items import Content
from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.models.loading import ModelConfig, load_reward_model
from rlhf_lightning.models.reward_heads import add_heads
from rlhf_lightning.models.reward_model import score_heads

BATCH = 32
"""Responses that are scored at a time."""


@torch.no_grad()
def scores_of(
    config: ModelConfig, encoder: Encoder, heads: Tensor | None, texts: Sequence[tuple[Content, Content]]
) -> list[tuple[float, ...]]:
    """Score each (prompt, response) by each of K heads, as `RewardStage` encodes them and before any normalisation.

    Args:
        config: of the reward model.
        encoder: of its tokenizer.
        heads: [K, H], its heads; None for the one of the model.
        texts: prompts and responses.
    """
    model = load_reward_model(config)
    if heads is not None:
        add_heads(model, len(heads), 0, heads)
    model = model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
    scores: list[tuple[float, ...]] = []
    for start in range(0, len(texts), BATCH):
        encoded = [encoder.together(prompt, [text], None)[1][0] for prompt, text in texts[start : start + BATCH]]
        prompts, responses = [each.prompt for each in encoded], [each.response for each in encoded]
        pad = encoder.tokenizer.pad_token_id
        rows = recorded_rows(prompts, responses, list(range(len(encoded))), encoder.stop_tokens, pad)
        scores += [tuple(each) for each in score_heads(model, rows.to(next(model.parameters()).device)).tolist()]
    return scores

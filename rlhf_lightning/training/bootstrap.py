"""Bootstrap samples of rows for the heads of an ensemble."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf_lightning.functional.ensembles import bootstrap_weights
from rlhf_lightning.models.encoding import Encoded
from rlhf_lightning.seeding import derive_seed


def row_weights(responses: Sequence[Encoded], seed: int, heads: int) -> Tensor:
    """Return float32 [K], how often each head's sample has a row: a function of its tokens and the seed, not of its batch."""
    if heads == 1:
        return torch.ones(1)
    text = json.dumps([[list(each.prompt), list(each.response)] for each in responses])
    row = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return bootstrap_weights(derive_seed(seed, row), heads)


def mean_over_heads(
    losses: Callable[[Tensor, Tensor | None], Tensor], scores: Tensor, bootstrap: Tensor | None
) -> Tensor:
    """Return the losses, averaged over heads that each learn from a sample of their own.

    Args:
        losses: of the scores of one head and the weights of its rows, both float [B]; no weights are 1.
        scores: float [B] of one head, or [B, K].
        bootstrap: float [B, K]; None for one head.
    """
    if bootstrap is None:
        return losses(scores, None)
    of_heads = [losses(*each) for each in zip(scores.unbind(-1), bootstrap.unbind(-1), strict=True)]
    return torch.stack(of_heads, -1).mean(-1)

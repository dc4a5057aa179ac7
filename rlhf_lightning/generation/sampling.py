"""Sample one token per row from logits and one uniform random number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rlhf_lightning.types import SamplingParams

Truncation = Callable[[Tensor], Tensor]
"""Logits [N, V] at the temperature → logits of which those of excluded tokens are -inf."""

BLOCK = 64
"""Tokens per block of the vocabulary. Blocks are summed first, and only one block per row is then cumulated."""


def truncation(params: SamplingParams) -> Truncation | None:
    """Combine top-k, top-p and min-p as transformers does, in this order; None where all tokens are kept."""
    warpers: list[Any] = []
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    if not warpers:
        return None
    processors: Any = LogitsProcessorList(warpers)
    return lambda logits: processors(None, logits)  # which read no tokens


def sample(
    logits: Tensor, temperature: float, uniforms: Tensor, truncate: Truncation | None = None
) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution at `uniforms`; take the most likely token at temperature 0.

    A row's token depends on its own uniform number alone, so rows that end change no other row.

    Args:
        logits: float32 [N, V].
        temperature: divides the logits; 0 is greedy.
        uniforms: float32 [N], in [0, 1).
        truncate: excludes tokens from sampling, at a temperature above 0.

    Returns:
        Tokens int64 [N], and their log-probabilities under the full distribution, float32 [N].
    """
    scaled = logits / (temperature or 1.0)
    probabilities = scaled.softmax(-1)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        kept = probabilities if truncate is None else truncate(scaled).softmax(-1)
        chosen = _invert_cdf(kept, uniforms)
    return chosen, probabilities.gather(-1, chosen[:, None]).squeeze(-1).log()


def _invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Find, per row, the first token at which the sum of `probabilities` [N, V] exceeds `uniforms` [N].

    A token of probability 0 is never chosen.
    """
    count, vocabulary = probabilities.shape
    blocks = F.pad(probabilities, (0, -vocabulary % BLOCK)).view(count, -1, BLOCK)
    ends = _as_integers(blocks.sum(-1)).cumsum(-1)
    mark = (uniforms.double()[:, None] * ends[:, -1:]).long()
    # NaN passes through here, and the check for non-finite losses reports it
    block = torch.searchsorted(ends, mark, right=True).clamp(max=ends.shape[1] - 1)
    inside = _as_integers(blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)).cumsum(-1)
    # the block's sum was rounded, so the rest of the mark is limited to the block
    rest = torch.minimum(mark - F.pad(ends, (1, 0)).gather(1, block), inside[:, -1:] - 1)
    chosen = block * BLOCK + torch.searchsorted(inside, rest, right=True)
    return chosen.squeeze(-1).clamp(max=vocabulary - 1)


def _as_integers(probabilities: Tensor) -> Tensor:
    """Convert to multiples of 2^-40, at least one for a positive probability.

    Sums of integers are exact, also on CUDA, which adds in any order.
    """
    return (probabilities.double() * 2.0**40).ceil().long()

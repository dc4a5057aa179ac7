"""Sample one token per row from logits and one uniform random number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Tokens per block of the vocabulary. Blocks are summed first, and only one block per row is then cumulated."""


def sample(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution at `uniforms`; take the most likely token at temperature 0.

    A row's token depends on its own uniform number alone, so rows that end change no other row.

    Args:
        logits: float32 [N, V].
        temperature: divides the logits; 0 is greedy.
        uniforms: float32 [N], in [0, 1).

    Returns:
        Tokens int64 [N], and their log-probabilities float32 [N].
    """
    probabilities = (logits / (temperature or 1.0)).softmax(-1)
    chosen = logits.argmax(-1) if temperature == 0 else _invert_cdf(probabilities, uniforms)
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

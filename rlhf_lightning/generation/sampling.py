"""One token a row from its logits and its own uniform number, and the record of what was drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Tokens of the vocabulary whose probabilities are summed first; only in one block a row are they then cumulated."""


def sample(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniforms` [N], and its log-probability; greedy at 0.

    The draw of a row depends on its own uniform number alone, so rows that finish do not change those that go on.
    """
    probabilities = (logits / (temperature or 1.0)).softmax(-1)
    chosen = logits.argmax(-1) if temperature == 0 else _invert_cdf(probabilities, uniforms)
    return chosen, probabilities.gather(-1, chosen[:, None]).squeeze(-1).log()


def _invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """int64 [N]: the first token at which the sum of `probabilities` [N, V] passes `uniforms`; never one that cannot be."""
    count, vocabulary = probabilities.shape
    blocks = F.pad(probabilities, (0, -vocabulary % BLOCK)).view(count, -1, BLOCK)
    ends = _as_integers(blocks.sum(-1)).cumsum(-1)
    mark = (uniforms.double()[:, None] * ends[:, -1:]).long()
    block = torch.searchsorted(ends, mark, right=True).clamp(max=ends.shape[1] - 1)  # of NaN, which the loss will tell
    inside = _as_integers(blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)).cumsum(-1)
    # a block's sum was rounded: what is left of the mark must still lie inside of it
    rest = torch.minimum(mark - F.pad(ends, (1, 0)).gather(1, block), inside[:, -1:] - 1)
    chosen = block * BLOCK + torch.searchsorted(inside, rest, right=True)
    return chosen.squeeze(-1).clamp(max=vocabulary - 1)


def _as_integers(probabilities: Tensor) -> Tensor:
    """In units of 2^-40, at least one for what can be: sums of whole numbers are exact, also where CUDA adds in any order."""
    return (probabilities.double() * 2.0**40).ceil().long()

"""One token a row from its logits and its own uniform number, and the record of what was drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64
"""Tokens of the vocabulary whose probabilities are summed first; only in one block a row are they then cumulated."""


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniforms` [N], and its log-probability; greedy at 0.

    The draw of a row depends on its own uniform number alone, so rows that finish do not change those that go on.
    """
    probabilities = (logits / (temperature or 1.0)).softmax(-1)
    chosen = logits.argmax(-1) if temperature == 0 else _inverted(probabilities, uniforms)
    return chosen, probabilities.gather(-1, chosen[:, None]).squeeze(-1).log()


def _inverted(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """int64 [N]: the first token at which the sum of `probabilities` [N, V] passes `uniforms`; never one that cannot be."""
    count, vocabulary = probabilities.shape
    blocks = F.pad(probabilities, (0, -vocabulary % BLOCK)).view(count, -1, BLOCK)
    ends = _whole(blocks.sum(-1)).cumsum(-1)
    mark = (uniforms.double()[:, None] * ends[:, -1:]).long()
    block = torch.searchsorted(ends, mark, right=True).clamp(max=ends.shape[1] - 1)  # of NaN, which the loss will tell
    inside = _whole(blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)).cumsum(-1)
    # a block's sum was rounded: what is left of the mark must still lie inside of it
    rest = torch.minimum(mark - F.pad(ends, (1, 0)).gather(1, block), inside[:, -1:] - 1)
    chosen = block * BLOCK + torch.searchsorted(inside, rest, right=True)
    return chosen.squeeze(-1).clamp(max=vocabulary - 1)


def _whole(probabilities: Tensor) -> Tensor:
    """In units of 2^-40, at least one for what can be: sums of whole numbers are exact, also where CUDA adds in any order."""
    return (probabilities.double() * 2.0**40).ceil().long()


class Transcript:
    """What B rows have written so far, up to T tokens each, and the luck of every token that they may write."""

    def __init__(
        self,
        rows: int,
        width: int,
        temperature: float,
        stop_tokens: list[int],
        pad_token: int,
        generator: torch.Generator,
        critic: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        device = generator.device
        self.temperature, self.width = temperature, width
        self.uniforms = torch.rand(width, rows, generator=generator, device=device)
        self.stops = torch.tensor(stop_tokens, dtype=torch.long, device=device)
        self.tokens = torch.full((rows, width), pad_token, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, width, device=device)
        self.critic = critic
        self.values = None if critic is None else torch.zeros(rows, width, device=device)
        self.written = torch.zeros(rows, dtype=torch.long, device=device)

    def extend(self, rows: Tensor, hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token for each of `rows` [n] from the `logits` [n, V] of the `hidden` states [n, H].

        Returns:
            The tokens [n], and which rows go on after them.
        """
        step = self.written[rows]
        chosen, logprobs = draw(logits, self.temperature, self.uniforms[step, rows])
        self.tokens[rows, step], self.logprobs[rows, step] = chosen, logprobs
        if self.critic is not None and self.values is not None:
            self.values[rows, step] = self.critic(hidden)
        self.written[rows] = step + 1
        return chosen, ~torch.isin(chosen, self.stops) & (step + 1 < self.width)

    @property
    def mask(self) -> Tensor:
        """bool [B, T]; True on what was written."""
        return torch.arange(self.width, device=self.written.device) < self.written[:, None]

"""One token a row from its logits and its own uniform number, and the record of what was drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lightning.generation.sampling import sample


class DecodingState:
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
        self.generated = torch.zeros(rows, dtype=torch.long, device=device)

    def extend(self, rows: Tensor, hidden: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token for each of `rows` [n] from the `logits` [n, V] of the `hidden` states [n, H].

        Returns:
            The tokens [n], and which rows go on after them.
        """
        step = self.generated[rows]
        chosen, logprobs = sample(logits, self.temperature, self.uniforms[step, rows])
        self.tokens[rows, step], self.logprobs[rows, step] = chosen, logprobs
        if self.critic is not None and self.values is not None:
            self.values[rows, step] = self.critic(hidden)
        self.generated[rows] = step + 1
        return chosen, ~torch.isin(chosen, self.stops) & (step + 1 < self.width)

    @property
    def mask(self) -> Tensor:
        """bool [B, T]; True on what was written."""
        return torch.arange(self.width, device=self.generated.device) < self.generated[:, None]

"""How the policy writes: the built-in sampler, and transformers' own `generate`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.sampling import sample as sample


@dataclass(frozen=True)
class Generated:
    """Responses to N prompts, `responses_per_prompt` each, rows of one prompt side by side."""

    tokens: Tensor
    """int64 [B, T]; right padded."""
    mask: Tensor
    """bool [B, T]; True on what was written, the stop token included."""
    logprobs: Tensor | None
    """float32 [B, T]; None where the sampler records none."""
    values: Tensor | None = None
    """float32 [B, T]; V of the state before each token, where there is a `critic` and the sampler asks it."""


class Generator(ABC):
    """A way to sample responses; hyper-parameters are its fields."""

    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UserError: no token may be written, or a temperature that is below zero or no number.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"generation.max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"generation.temperature is {self.temperature}; it must be positive, or 0 for greedy")

    @abstractmethod
    def generate(
        self,
        model: nn.Module,
        prompts: Tensor,
        prompt_mask: Tensor,
        responses_per_prompt: int,
        stop_tokens: list[int],
        pad_token: int,
        generator: torch.Generator,
        temperature: float | None = None,
        critic: Callable[[Tensor], Tensor] | None = None,
    ) -> Generated:
        """Sample up to `max_new_tokens` tokens a response.

        Args:
            model: a causal language model of transformers, or a peft model around one; in eval mode, without gradient.
            prompts: int64 [N, P], left padded; `prompt_mask` bool [N, P].
            stop_tokens: any of them ends a response and belongs to it.
            pad_token: fills what is not written; may be a stop token.
            generator: the only source of randomness (of the device of `prompts`).
            temperature: instead of the field; 0 is greedy.
            critic: of a critic on the model's own trunk: hidden states [n, H] → float32 [n]. A sampler that records what it
                says need not be followed by a pass for values; one may ignore it.
        """

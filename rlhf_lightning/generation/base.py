"""Define the contract of a generator."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Generated, SamplingParams

__all__ = ["Generated", "Generator", "SamplingParams"]


class Generator(ABC):
    """Sample responses from a language model; the hyper-parameters are dataclass fields."""

    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: `max_new_tokens` is below 1, or `temperature` is negative or not finite.
        """
        if self.max_new_tokens < 1:
            raise UserError(
                f"generation.max_new_tokens is {self.max_new_tokens}; a response needs a token: set it to at least 1"
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"generation.temperature is {self.temperature}; it divides the logits: set it to a positive number, or to 0 "
                "for greedy decoding"
            )

    def sampling_params(
        self, stop_tokens: list[int], pad_token: int, responses_per_prompt: int = 1, temperature: float | None = None
    ) -> SamplingParams:
        """Combine the fields with the tokenizer's ids; `temperature` replaces the field."""
        chosen = self.temperature if temperature is None else temperature
        return SamplingParams(self.max_new_tokens, chosen, stop_tokens, pad_token, responses_per_prompt)

    @abstractmethod
    def generate(
        self,
        model: nn.Module,
        prompts: Tensor,
        prompt_mask: Tensor,
        params: SamplingParams,
        generator: torch.Generator,
        critic: Callable[[Tensor], Tensor] | None = None,
    ) -> Generated:
        """Generate `params.responses_per_prompt` responses to each prompt.

        Args:
            model: a causal language model of transformers, or a peft model around one, in eval mode. No gradient is kept.
            prompts: int64 [N, P], left padded.
            prompt_mask: bool [N, P]; True on prompt tokens.
            params: lengths, temperature and token ids.
            generator: the only source of randomness, on the device of `prompts`.
            critic: maps hidden states [n, H] of the model's backbone to values, float32 [n]. A generator that records
                values saves a later pass; a generator may ignore the critic.
        """

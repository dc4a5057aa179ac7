"""How the policy writes: the built-in sampler, and transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generated, Generator
from rlhf_lightning.generation.continuous import ContinuousBatch, UnsuitableCacheError
from rlhf_lightning.generation.decoding_state import DecodingState
from rlhf_lightning.generation.sampling import sample as sample
from rlhf_lightning.generation.static import decode_static
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.kv_cache import rows_are_independent


@dataclass
class Sampler(Generator):
    """One prefill a prompt whatever the number of responses; a key-value cache; finished rows leave the batch.

    The log-probability of every token, at the temperature, is recorded from the logits that it was drawn from, and the value of
    a critic on the same trunk from the hidden state. What a row
    writes depends on the model, its prompt and its own random numbers alone, not on which rows decode beside it.
    """

    max_new_tokens: int = 128
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Divides the logits, here and in every log-probability; 0 is greedy (for `predict`, not for learning)."""
    max_batch_size: int = 256
    """Rows that decode at a time, and others wait; memory for keys and values grows with it, and no response changes."""
    continuous_batching: bool = True
    """False: a row waits until all that decode have ended, and the cache is that of transformers; so it is for models with
    windows or states anyway."""

    def __post_init__(self) -> None:
        """See `Generator.__post_init__`."""
        super().__post_init__()
        if self.max_batch_size < 1:
            raise UserError(f"generation.max_batch_size is {self.max_batch_size}; it must be at least 1")

    @torch.no_grad()
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
        """See `Generator.generate`."""
        lm = language_model(model)
        sampling_temperature = self.temperature if temperature is None else temperature
        rows, width = len(prompts) * responses_per_prompt, self.max_new_tokens
        decoding = DecodingState(rows, width, sampling_temperature, stop_tokens, pad_token, generator, critic)
        given = (lm, prompts, prompt_mask, responses_per_prompt, self.max_batch_size, decoding)
        if not (self.continuous_batching and rows_are_independent(lm, prompts.shape[1] + width)):
            decode_static(*given)
        else:
            try:
                ContinuousBatch(*given).run()
            except UnsuitableCacheError:
                decode_static(*given)
        return Generated(decoding.tokens, decoding.mask, decoding.logprobs, decoding.values)

"""How the policy writes: the built-in sampler, and transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generation, Written
from rlhf_lightning.generation.continuous import ContinuousBatch, UnsuitableCacheError
from rlhf_lightning.generation.decoding_state import Transcript
from rlhf_lightning.generation.sampling import draw as draw
from rlhf_lightning.generation.static import write_together
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.kv_cache import rows_are_independent


@dataclass
class Sampler(Generation):
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
        """See `Generation.__post_init__`."""
        super().__post_init__()
        if self.max_batch_size < 1:
            raise UserError(f"generation.max_batch_size is {self.max_batch_size}; it must be at least 1")

    @torch.no_grad()
    def write(
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
    ) -> Written:
        """See `Generation.write`."""
        lm = language_model(model)
        heat = self.temperature if temperature is None else temperature
        rows, width = len(prompts) * responses_per_prompt, self.max_new_tokens
        transcript = Transcript(rows, width, heat, stop_tokens, pad_token, generator, critic)
        given = (lm, prompts, prompt_mask, responses_per_prompt, self.max_batch_size, transcript)
        if not (self.continuous_batching and rows_are_independent(lm, prompts.shape[1] + width)):
            write_together(*given)
        else:
            try:
                ContinuousBatch(*given).run()
            except UnsuitableCacheError:
                write_together(*given)
        return Written(transcript.tokens, transcript.mask, transcript.logprobs, transcript.values)

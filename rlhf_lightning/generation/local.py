"""Generate responses with the built-in sampler."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.base import Generated, GenerationRequest, Generator
from rlhf_lightning.generation.continuous import ContinuousBatch, UnsupportedCacheError
from rlhf_lightning.generation.decoding_state import DecodingState
from rlhf_lightning.generation.static import decode_static
from rlhf_lightning.models.backbone import language_model
from rlhf_lightning.models.half_precision import generation_in_16_bits
from rlhf_lightning.models.kv_cache import rows_are_independent


@dataclass
class Sampler(Generator):
    """Generate with one prefill per prompt, a KV cache and continuous batching.

    The sampler records the log-probability of every token, at the temperature, from the logits that it was sampled from.
    It records the value of a critic on the same backbone from the hidden state. A response depends on the model, its prompt
    and its own random numbers alone, not on the rows that decode beside it.
    """

    max_batch_size: int = 256
    """Maximum number of rows that decode at a time; other rows wait. The KV cache grows with it; no response changes."""
    continuous_batching: bool = True
    """False: new rows wait until all decoding rows have ended, and transformers provides the cache. Models with attention
    windows or recurrent states always decode in this way."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: `max_batch_size` is below 1, or a field of `Generator` is invalid.
        """
        super().__post_init__()
        if self.max_batch_size < 1:
            raise UserError(
                f"generation.max_batch_size is {self.max_batch_size}; a row must decode: set it to at least 1"
            )

    def generate(self, request: GenerationRequest) -> Generated:
        """Implement `Generator.generate`."""
        assert request.model is not None, "the sampler decodes with request.model"
        lm, prompts, mask = language_model(request.model), request.prompts, request.prompt_mask
        state, copies = DecodingState(request), request.params.responses_per_prompt
        longest = prompts.shape[1] + request.params.max_new_tokens
        with generation_in_16_bits(request.model):
            if self.continuous_batching and rows_are_independent(lm, longest):
                try:
                    ContinuousBatch(lm, prompts, mask, copies, self.max_batch_size, state).run()
                    return state.result()
                except UnsupportedCacheError:
                    pass  # raised before the first token, so the state is still empty
            decode_static(lm, prompts, mask, copies, self.max_batch_size, state)
        return state.result()

"""How the policy writes: the built-in sampler, and transformers' own `generate`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.cache import rows_are_independent
from rlhf_lightning.models.policy import language_model
from rlhf_lightning.rollouts.continuous import ContinuousBatch, UnsuitableCacheError
from rlhf_lightning.rollouts.drawing import Transcript
from rlhf_lightning.rollouts.drawing import draw as draw
from rlhf_lightning.rollouts.together import write_together


@dataclass(frozen=True)
class Written:
    """Responses to N prompts, `responses_per_prompt` each, rows of one prompt side by side."""

    tokens: Tensor
    """int64 [B, T]; right padded."""
    mask: Tensor
    """bool [B, T]; True on what was written, the stop token included."""
    logprobs: Tensor | None
    """float32 [B, T]; None where the sampler records none."""
    values: Tensor | None = None
    """float32 [B, T]; V of the state before each token, where there is a `critic` and the sampler asks it."""


class Generation(ABC):
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


@dataclass
class TransformersGenerate(Generation):
    """transformers' own `generate`: slower, and the reference for correctness; records no log-probabilities."""

    max_new_tokens: int = 128
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""

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
        """See `Generation.write`; `generate` reads the global random state, which is seeded from `generator` and put back."""
        heat = self.temperature if temperature is None else temperature
        sampling = {"do_sample": True, "temperature": heat, "top_k": 0, "top_p": 1.0} if heat else {"do_sample": False}
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[prompts.device] if prompts.is_cuda else []):
            torch.manual_seed(seed)
            full: Tensor = model.generate(  # type: ignore[operator]
                input_ids=prompts,
                attention_mask=prompt_mask.long(),
                max_new_tokens=self.max_new_tokens,
                num_return_sequences=responses_per_prompt,
                eos_token_id=stop_tokens,
                pad_token_id=pad_token,
                synced_gpus=False,  # weights that are cut are whole here, and a rank may have nothing to write
                **sampling,
            )
        return _trimmed(full[:, prompts.shape[1] :], self.max_new_tokens, stop_tokens, pad_token)


def _trimmed(written: Tensor, width: int, stop_tokens: list[int], pad_token: int) -> Written:
    tokens = written.new_full((len(written), width), pad_token)
    tokens[:, : written.shape[1]] = written
    stopped = torch.isin(tokens, torch.tensor(stop_tokens, device=tokens.device))
    mask = stopped.long().cumsum(-1) - stopped.long() == 0
    mask[:, written.shape[1] :] = False
    return Written(tokens.masked_fill(~mask, pad_token), mask, None)

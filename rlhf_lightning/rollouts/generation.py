"""How the policy writes: the built-in sampler, and transformers' own `generate`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.policy import Head, language_model


@dataclass(frozen=True)
class Written:
    """Responses to N prompts, `responses_per_prompt` each, rows of one prompt side by side."""

    tokens: Tensor
    """int64 [B, T]; right padded."""
    mask: Tensor
    """bool [B, T]; True on what was written, the stop token included."""
    logprobs: Tensor | None
    """float32 [B, T]; None where the sampler records none."""


class Generation(ABC):
    """A way to sample responses; hyper-parameters are its fields."""

    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        """Check.

        Raises:
            UserError: no token may be written, or a temperature below zero.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"generation.max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
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
    ) -> Written:
        """Sample up to `max_new_tokens` tokens a response.

        Args:
            model: a causal language model of transformers, or a peft model around one; in eval mode, without gradient.
            prompts: int64 [N, P], left padded; `prompt_mask` bool [N, P].
            stop_tokens: any of them ends a response and belongs to it.
            pad_token: fills what is not written; may be a stop token.
            generator: the only source of randomness (of the device of `prompts`).
            temperature: instead of the field; 0 is greedy.
        """


@dataclass
class Sampler(Generation):
    """One prefill a prompt whatever the number of responses; a key-value cache; finished rows leave the batch.

    The log-probability of every token, at the temperature, is recorded from the logits that it was drawn from.
    """

    max_new_tokens: int = 128
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Divides the logits, here and in every log-probability; 0 is greedy (for `predict`, not for learning)."""

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
    ) -> Written:
        """See `Generation.write`."""
        heat = self.temperature if temperature is None else temperature
        count, width = len(prompts) * responses_per_prompt, self.max_new_tokens
        uniforms = torch.rand(width, count, generator=generator, device=prompts.device)
        tokens = torch.full((count, width), pad_token, dtype=torch.long, device=prompts.device)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        logprobs = torch.zeros_like(tokens, dtype=torch.float32)
        stops = torch.tensor(stop_tokens, device=prompts.device)
        decoder = _Decoder(model, prompts, prompt_mask, responses_per_prompt, width)
        active = torch.arange(count, device=prompts.device)
        for step in range(width):
            chosen, chosen_logprobs = draw(decoder.logits, heat, uniforms[step, active])
            tokens[active, step], mask[active, step], logprobs[active, step] = chosen, True, chosen_logprobs
            going = ~torch.isin(chosen, stops)
            active = active[going]
            if not len(active) or step + 1 == width:
                break
            decoder.advance(chosen, going)
        return Written(tokens, mask, logprobs)


def draw(logits: Tensor, temperature: float, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution at `uniforms` [N], and its log-probability; greedy at 0.

    The draw of a row depends on its own uniform number alone, so rows that finish do not change those that go on.
    """
    if temperature == 0:
        logprobs = logits.log_softmax(-1)
        chosen = logits.argmax(-1)
    else:
        logprobs = (logits / temperature).log_softmax(-1)
        cumulative = logprobs.double().exp().cumsum(-1)
        chosen = torch.searchsorted(cumulative, (uniforms.double() * cumulative[:, -1])[:, None], right=True).squeeze(
            -1
        )
        chosen = chosen.clamp(max=logits.shape[-1] - 1)
    return chosen, logprobs.gather(-1, chosen[:, None]).squeeze(-1)


class _Decoder:
    """The model's state after the tokens so far: cache, positions, attention mask, and the logits of the next token."""

    def __init__(self, model: nn.Module, prompts: Tensor, prompt_mask: Tensor, copies: int, width: int) -> None:
        self.lm: Any = language_model(model)
        self.head = Head(self.lm, 1.0, False)
        positions = (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self.lm.base_model(
            input_ids=prompts, attention_mask=prompt_mask.long(), position_ids=positions, use_cache=True
        )
        self.cache, self.seen = output.past_key_values, prompts.shape[1]
        self.cache.batch_repeat_interleave(copies)
        self.logits = self.head.logits(output.last_hidden_state[:, -1]).repeat_interleave(copies, 0)
        self.positions = positions[:, -1:].repeat_interleave(copies, 0)
        written = torch.ones(len(prompts), width, dtype=torch.long, device=prompts.device)
        self.attention = torch.cat([prompt_mask.long(), written], 1).repeat_interleave(copies, 0)

    def advance(self, tokens: Tensor, going: Tensor) -> None:
        """Append `tokens` [N]; rows where `going` [N] is False leave."""
        if not bool(going.all()):
            index = torch.nonzero(going).flatten()
            self.cache.batch_select_indices(index)
            tokens, self.positions, self.attention = tokens[index], self.positions[index], self.attention[index]
        self.seen, self.positions = self.seen + 1, self.positions + 1
        output = self.lm.base_model(
            input_ids=tokens[:, None],
            attention_mask=self.attention[:, : self.seen],
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        self.logits = self.head.logits(output.last_hidden_state[:, -1])


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

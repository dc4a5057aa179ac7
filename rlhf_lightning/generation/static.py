"""Rows side by side from the first token to the last, with the model's own cache: right for any that transformers has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.decoding_state import DecodingState
from rlhf_lightning.models.logprobs import Head


def decode_static(
    lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, most: int, decoding: DecodingState
) -> None:
    """Fill the transcript, the responses to as many prompts at a time as are `most` rows, or to one."""
    count = max(1, most // copies)
    for first in range(0, len(prompts), count):
        some = slice(first, first + count)
        _write(lm, prompts[some], prompt_mask[some], copies, first * copies, decoding)


def _write(lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, first: int, decoding: DecodingState) -> None:
    """Every row's next token stands in the same column, and finished rows leave the batch.

    Args:
        lm: a causal language model of transformers.
        prompts: int64 [N, P], left padded; `prompt_mask` bool [N, P].
        copies: responses a prompt.
        first: the transcript's row of the first response.

    Raises:
        UserError: the model goes on from something else than such a cache.
    """
    decoder = _StaticDecoder(lm, prompts, prompt_mask, copies, decoding.width)
    active = torch.arange(first, first + len(prompts) * copies, device=prompts.device)
    while True:
        chosen, going = decoding.extend(active, decoder.hidden, decoder.head.logits(decoder.hidden))
        index = torch.nonzero(going).flatten()
        if not len(index):
            return
        active = active[index]
        decoder.advance(chosen, index)


class _StaticDecoder:
    """The model's state after the tokens so far: cache, positions, attention mask, and the last hidden states [n, H]."""

    def __init__(self, lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, width: int) -> None:
        self.lm, self.head = lm, Head(lm, 1.0, False)
        positions = (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self.lm.base_model(
            input_ids=prompts, attention_mask=prompt_mask.long(), position_ids=positions, use_cache=True
        )
        if getattr(output, "past_key_values", None) is None:
            raise UserError(
                f"{type(lm).__name__} keeps what it has read in a form that the sampler does not know; write with "
                "generation: TransformersGenerate"
            )
        self.cache, self.seen = output.past_key_values, prompts.shape[1]
        self._take(torch.arange(len(prompts), device=prompts.device).repeat_interleave(copies))
        self.hidden = output.last_hidden_state[:, -1].repeat_interleave(copies, 0)
        self.positions = positions[:, -1:].repeat_interleave(copies, 0)
        generated = torch.ones(len(prompts), width, dtype=torch.long, device=prompts.device)
        self.attention = torch.cat([prompt_mask.long(), generated], 1).repeat_interleave(copies, 0)

    def advance(self, tokens: Tensor, index: Tensor) -> None:
        """Append `tokens` [N]; rows that `index` does not name leave."""
        if len(index) < len(tokens):
            self._take(index)
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
        self.hidden = output.last_hidden_state[:, -1]

    def _take(self, index: Tensor) -> None:
        """Rows `index` of the cache; the states of recurrent layers are reached by its method for beams alone."""
        states = any(hasattr(layer, "recurrent_states") for layer in getattr(self.cache, "layers", ()))
        (self.cache.reorder_cache if states else self.cache.batch_select_indices)(index)

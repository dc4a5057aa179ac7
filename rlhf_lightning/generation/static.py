"""Decode rows in fixed batches with the model's own cache, which works for every causal model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.decoding_state import DecodingState
from rlhf_lightning.models.backbone import backbone_of
from rlhf_lightning.models.half_precision import keep_cache_dtype
from rlhf_lightning.models.logprobs import Head


def decode_static(
    lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, max_batch_size: int, state: DecodingState
) -> None:
    """Fill `state` with the responses, a batch of prompts at a time; finished rows leave their batch.

    Args:
        lm: a causal language model of transformers.
        prompts: int64 [N, P], left padded.
        prompt_mask: bool [N, P].
        copies: responses per prompt.
        max_batch_size: rows per batch; a batch has at least one prompt.
        state: of N × `copies` rows.

    Raises:
        UserError: the model returns no `past_key_values`.
    """
    count = max(1, max_batch_size // copies)
    for first in range(0, len(prompts), count):
        batch = slice(first, first + count)
        decoder = _StaticDecoder(lm, prompts[batch], prompt_mask[batch], copies, state.width)
        rows = torch.arange(len(prompts[batch]) * copies, device=prompts.device) + first * copies
        while len(rows):
            tokens, continuing = state.extend(rows, decoder.hidden, decoder.head.logits(decoder.hidden))
            kept = torch.nonzero(continuing).flatten()
            rows = rows[kept]
            if len(rows):
                decoder.advance(tokens, kept)


class _StaticDecoder:
    """Hold the model's state after the tokens so far: cache, positions, attention mask, and last hidden states [n, H]."""

    def __init__(self, lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, width: int) -> None:
        self.lm, self.head = lm, Head(lm, 1.0, False)
        positions = (prompt_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = backbone_of(self.lm)(
            input_ids=prompts, attention_mask=prompt_mask.long(), position_ids=positions, use_cache=True
        )
        if getattr(output, "past_key_values", None) is None:
            raise UserError(
                f"{type(lm).__name__} returns no past_key_values, which the built-in sampler decodes from; set "
                "generation: TransformersGenerate"
            )
        self.cache, self.columns = output.past_key_values, prompts.shape[1]
        keep_cache_dtype(self.cache)
        self._select(torch.arange(len(prompts), device=prompts.device).repeat_interleave(copies))
        self.hidden = output.last_hidden_state[:, -1].repeat_interleave(copies, 0)
        self.positions = positions[:, -1:].repeat_interleave(copies, 0)
        generated = torch.ones(len(prompts), width, dtype=torch.long, device=prompts.device)
        self.attention = torch.cat([prompt_mask.long(), generated], 1).repeat_interleave(copies, 0)

    def advance(self, tokens: Tensor, kept: Tensor) -> None:
        """Drop all rows but `kept` (int64 [m]), and append the tokens [n] of the kept rows."""
        if len(kept) < len(tokens):
            self._select(kept)
            tokens, self.positions, self.attention = tokens[kept], self.positions[kept], self.attention[kept]
        self.columns, self.positions = self.columns + 1, self.positions + 1
        output = backbone_of(self.lm)(
            input_ids=tokens[:, None],
            attention_mask=self.attention[:, : self.columns],
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        self.hidden = output.last_hidden_state[:, -1]

    def _select(self, rows: Tensor) -> None:
        """Keep `rows` of the cache; only the method for beam search also selects recurrent states."""
        recurrent = any(hasattr(layer, "recurrent_states") for layer in getattr(self.cache, "layers", ()))
        (self.cache.reorder_cache if recurrent else self.cache.batch_select_indices)(rows)

"""Decode with continuous batching: a waiting row takes the slot of a finished one, so the cost follows the generated tokens."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.generation.decoding_state import DecodingState
from rlhf_lightning.models.backbone import attention_mask_for, backbone_of, capabilities_of
from rlhf_lightning.models.kv_cache import SlotCache, is_plain
from rlhf_lightning.models.logprobs import Head

FIRST_COLUMNS = 64
"""Response tokens that a slot first has room for; the room doubles as rows grow."""


class PendingRow(NamedTuple):
    """Describe a row whose prompt is computed and whose first token is sampled."""

    row: int
    prompt: int
    """Index in the latest prefill."""
    length: int
    """Prompt length, in tokens."""
    token: int


class UnsupportedCacheError(Exception):
    """Report that the model's cache holds more than keys and values."""


class ContinuousBatch:
    """Decode up to `slots` rows at a time; waiting rows are served in order.

    Args:
        lm: a causal language model of transformers whose rows are independent (`kv_cache.rows_are_independent`).
        prompts: int64 [N, P], left padded.
        prompt_mask: bool [N, P].
        copies: responses per prompt.
        slots: maximum number of decoding rows.
        decoding: the state of N × `copies` rows, which `run` fills.
    """

    def __init__(
        self, lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, slots: int, decoding: DecodingState
    ) -> None:
        self.lm, self.head, self.decoding, self.copies = lm, Head(lm, 1.0, False), decoding, copies
        self.backbone, self.capabilities = backbone_of(lm), capabilities_of(backbone_of(lm))
        self.slots = min(slots, len(prompts) * copies)
        self.prompts, self.lengths = _left_aligned(prompts, prompt_mask)
        self.prompt_lengths: list[int] = self.lengths.tolist()
        self.longest = prompts.shape[1] + decoding.width
        self.next_prompt = 0
        """Index of the next prompt to prefill."""
        self.waiting: deque[PendingRow] = deque()
        self.state = torch.zeros(3, self.slots, dtype=torch.long, device=prompts.device)
        """Per slot: its row, the number of its tokens in the cache, and its next token."""
        self.steps, self.started_at = 0, [0] * self.slots
        """Per slot: tokens in the cache minus steps taken, computed on the host without waiting for the device."""
        self.active = self.slots
        """Number of slots in use, which are the first ones."""
        self.cache: SlotCache | None = None

    def run(self) -> None:
        """Generate all responses.

        Raises:
            UnsupportedCacheError: the cache holds more than keys and values. No token is generated.
        """
        finished = list(range(self.slots))
        while True:
            self._replace(finished)
            if not self.active:
                return
            rows, _, tokens = self.state[:, : self.active]
            hidden = self._next_hidden_states()
            chosen, continuing = self.decoding.extend(rows, hidden, self.head.logits(hidden))
            tokens.copy_(chosen)
            # the only wait for the device per step
            finished = [slot for slot, continues in enumerate(continuing.tolist()) if not continues]

    def _next_hidden_states(self) -> Tensor:
        """Feed the next token of each active slot; return the hidden states [active, H] after it."""
        assert self.cache is not None
        _, lengths, tokens = self.state[:, : self.active]
        self.steps += 1
        longest = self.steps + max(self.started_at[: self.active])
        self.cache.point(lengths, longest)
        mask = torch.arange(longest, device=lengths.device) <= lengths[:, None]
        # transformers waits for the device to find padding in a 2-D mask, so a model that reads a 4-D mask gets one
        attention_mask = (
            attention_mask_for(mask[:, None, None], self.backbone) if self.capabilities.packing else mask.long()
        )
        output = self.backbone(
            input_ids=tokens[:, None],
            attention_mask=attention_mask,
            position_ids=lengths[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        lengths += 1
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def _replace(self, finished: list[int]) -> None:
        """Put waiting rows into the finished slots; close the slots for which no row waits."""
        while finished and (self.waiting or self._prefill()):
            arriving = [self.waiting.popleft() for _ in range(min(len(finished), len(self.waiting)))]
            if arriving:
                self._place(finished[: len(arriving)], arriving)
                finished = finished[len(arriving) :]
        if finished:
            self._close(finished)

    def _prefill(self) -> bool:
        """Compute the next prompts, and sample the first token of all of their rows.

        Returns:
            False if no prompt is left.
        """
        batch = self._next_prompts()
        if not batch:
            return False
        self.next_prompt = batch.stop
        lengths = self.lengths[batch.start : batch.stop]
        prompt_lengths = self.prompt_lengths[batch.start : batch.stop]
        columns = torch.arange(max(1, *prompt_lengths), device=lengths.device)
        output = self.backbone(  # the padding is on the right, so causal attention never reads it
            input_ids=self.prompts[batch.start : batch.stop, : len(columns)],
            position_ids=columns.expand(len(batch), -1),
            use_cache=True,
        )
        self.prefilled: Any = getattr(output, "past_key_values", None)
        if not is_plain(self.prefilled, self.longest):
            raise UnsupportedCacheError
        last = output.last_hidden_state[torch.arange(len(batch), device=lengths.device), (lengths - 1).clamp(min=0)]
        rows = torch.arange(batch.start * self.copies, batch.stop * self.copies, device=lengths.device)
        hidden, logits = (x.repeat_interleave(self.copies, 0) for x in (last, self.head.logits(last)))
        tokens, continuing = torch.stack(self.decoding.extend(rows, hidden, logits)).tolist()
        for index in (i for i in range(len(rows)) if continuing[i]):
            prompt = index // self.copies
            row = batch.start * self.copies + index
            self.waiting.append(PendingRow(row, prompt, prompt_lengths[prompt], tokens[index]))
        return True

    def _next_prompts(self) -> range:
        """Choose as many prompts as fill all slots, within `max_tokens_per_batch`; at least one if any is left."""
        limit = self.capabilities.max_tokens_per_batch or 2**62
        stop = min(self.next_prompt + max(1, self.slots // self.copies), len(self.prompts))
        longest = 0
        for prompt in range(self.next_prompt, stop):
            longest = max(longest, self.prompt_lengths[prompt])
            if prompt > self.next_prompt and (prompt + 1 - self.next_prompt) * longest > limit:
                return range(self.next_prompt, prompt)
        return range(self.next_prompt, stop)

    def _place(self, slots: list[int], arriving: list[PendingRow]) -> None:
        """Start the rows `arriving` in `slots`."""
        if self.cache is None:
            columns = self.prompts.shape[1] + FIRST_COLUMNS
            self.cache = SlotCache(len(self.prefilled.layers), self.slots, columns, self.longest)
        device = self.state.device
        index, prompts = torch.tensor([slots, [one.prompt for one in arriving]], device=device)
        for slot, one in zip(slots, arriving, strict=True):
            self.started_at[slot] = one.length - self.steps
        self.cache.place(index, self.prefilled, prompts, max(one.length for one in arriving))
        self.state[:, index] = torch.tensor([(one.row, one.length, one.token) for one in arriving], device=device).T

    def _close(self, free: list[int]) -> None:
        """Move the last rows into the `free` slots, so that the slots in use stay the first ones."""
        remaining = self.active - len(free)
        targets = [slot for slot in free if slot < remaining]
        sources = sorted(set(range(remaining, self.active)) - set(free))
        if targets:
            assert self.cache is not None
            into, out_of = torch.tensor([targets, sources], device=self.state.device)
            self.cache.move(into, out_of)
            self.state[:, into] = self.state[:, out_of]
            for target, source in zip(targets, sources, strict=True):
                self.started_at[target] = self.started_at[source]
        self.active = remaining


def _left_aligned(prompts: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shift left-padded prompts [N, P] to the first column; return them with their lengths [N]."""
    lengths = prompt_mask.sum(-1)
    width = prompts.shape[1]
    columns = torch.arange(width, device=prompts.device) + (width - lengths)[:, None]
    return prompts.gather(1, columns.clamp(max=width - 1)), lengths

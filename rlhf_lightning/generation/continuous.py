"""Continuous batching: a row that finishes leaves its slot to one that waits, so the cost follows the tokens written."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.generation.decoding_state import DecodingState
from rlhf_lightning.models.backbone import attention_mask_for
from rlhf_lightning.models.kv_cache import SlotCache, is_plain
from rlhf_lightning.models.logprobs import Head

FIRST_COLUMNS = 64
"""Room for response tokens that a slot has at first; it doubles as rows grow."""


class PendingRow(NamedTuple):
    """A row whose prompt is computed and whose first token is drawn."""

    row: int
    prompt: int
    """Where in the latest prefill."""
    length: int
    """Of the prompt, in tokens."""
    token: int


class UnsuitableCacheError(Exception):
    """The model's cache turns out to be more than keys and values."""


class ContinuousBatch:
    """Up to `slots` rows that decode side by side; rows that wait are served in their order.

    Args:
        lm: a causal language model of transformers whose rows are independent (`models.cache.rows_are_independent`).
        prompts: int64 [N, P], left padded; `prompt_mask` bool [N, P].
        copies: responses a prompt.
        transcript: of N × `copies` rows; is filled by `run`.
    """

    def __init__(
        self, lm: Any, prompts: Tensor, prompt_mask: Tensor, copies: int, slots: int, decoding: DecodingState
    ) -> None:
        self.lm, self.head, self.decoding, self.copies = lm, Head(lm, 1.0, False), decoding, copies
        self.slots = min(slots, len(prompts) * copies)
        self.prompts, self.lengths = _left_aligned(prompts, prompt_mask)
        self.known_lengths: list[int] = self.lengths.tolist()
        self.longest = prompts.shape[1] + decoding.width
        self.asked = 0
        """Prompts that were computed."""
        self.waiting: deque[PendingRow] = deque()
        self.state = torch.zeros(3, self.slots, dtype=torch.long, device=prompts.device)
        """Of every slot: its row, how many tokens of it are in the cache, and the next one."""
        self.steps, self.started_at = 0, [0] * self.slots
        """Of every slot: how many tokens of its row are in the cache, less the steps taken; the host need not ask for it."""
        self.active = self.slots
        """Slots in use: the first ones."""
        self.cache: SlotCache | None = None

    def run(self) -> None:
        """Write all responses.

        Raises:
            UnsuitableCacheError: before anything is written.
        """
        self._replace(list(range(self.slots)))
        while self.active:
            ended = self._step()
            if ended:
                self._replace(ended)

    def _step(self) -> list[int]:
        """One token for each active slot; the slots whose rows end with it."""
        assert self.cache is not None
        rows, lengths, tokens = self.state[:, : self.active]
        self.steps += 1
        reach = self.steps + max(self.started_at[: self.active])
        self.cache.point(lengths, reach)
        mask = torch.arange(reach, device=lengths.device) <= lengths[:, None]
        output = self.lm.base_model(
            input_ids=tokens[:, None],
            attention_mask=self._attention_mask_for(mask),
            position_ids=lengths[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        lengths += 1
        hidden = output.last_hidden_state[:, -1]
        chosen, going = self.decoding.extend(rows, hidden, self.head.logits(hidden))
        tokens.copy_(chosen)
        return [slot for slot, goes in enumerate(going.tolist()) if not goes]  # the one wait of a step for the device

    def _attention_mask_for(self, mask: Tensor) -> Tensor:
        """With all of its dimensions where the model reads that: transformers else waits for the device, to look for padding."""
        backbone = self.lm.base_model
        return (
            attention_mask_for(mask[:, None, None], backbone)
            if getattr(backbone, "supports_packing", False)
            else mask.long()
        )

    def _replace(self, ended: list[int]) -> None:
        """Rows that wait take the slots that are free; the last rows take those that are left over."""
        while ended and (self.waiting or self._prefill()):
            arriving = [self.waiting.popleft() for _ in range(min(len(ended), len(self.waiting)))]
            if arriving:
                self._place(ended[: len(arriving)], arriving)
                ended = ended[len(arriving) :]
        if ended:
            self._close(ended)

    def _prefill(self) -> bool:
        """Compute as many prompts as would fill all slots, or a pass, and draw the first token of all of their rows.

        False if there are no more prompts.
        """
        asked = self._next_prompts()
        if not asked:
            return False
        self.asked = asked.stop
        lengths = self.lengths[asked.start : asked.stop]
        known = self.known_lengths[asked.start : asked.stop]
        columns = torch.arange(max(1, *known), device=lengths.device)
        output = self.lm.base_model(  # nothing attends to the padding, which stands behind
            input_ids=self.prompts[asked.start : asked.stop, : len(columns)],
            position_ids=columns.expand(len(asked), -1),
            use_cache=True,
        )
        self.prefilled: Any = getattr(output, "past_key_values", None)
        if not is_plain(self.prefilled, self.longest):
            raise UnsuitableCacheError
        last = output.last_hidden_state[torch.arange(len(asked), device=lengths.device), (lengths - 1).clamp(min=0)]
        rows = torch.arange(asked.start * self.copies, asked.stop * self.copies, device=lengths.device)
        hidden, logits = (x.repeat_interleave(self.copies, 0) for x in (last, self.head.logits(last)))
        tokens, going = torch.stack(self.decoding.extend(rows, hidden, logits)).tolist()
        for index in (i for i in range(len(rows)) if going[i]):
            prompt = index // self.copies
            row = asked.start * self.copies + index
            self.waiting.append(PendingRow(row, prompt, known[prompt], tokens[index]))
        return True

    def _next_prompts(self) -> range:
        limit = getattr(self.lm.base_model, "max_tokens_per_batch", None) or 2**62
        stop = min(self.asked + max(1, self.slots // self.copies), len(self.prompts))
        longest = 0
        for prompt in range(self.asked, stop):
            longest = max(longest, self.known_lengths[prompt])
            if prompt > self.asked and (prompt + 1 - self.asked) * longest > limit:
                return range(self.asked, prompt)
        return range(self.asked, stop)

    def _place(self, slots: list[int], arriving: list[PendingRow]) -> None:
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
        """The last rows move into the slots that are free, so that those in use are the first ones."""
        kept = self.active - len(free)
        targets = [slot for slot in free if slot < kept]
        sources = sorted(set(range(kept, self.active)) - set(free))
        if targets:
            assert self.cache is not None
            into, out_of = torch.tensor([targets, sources], device=self.state.device)
            self.cache.move(into, out_of)
            self.state[:, into] = self.state[:, out_of]
            for target, source in zip(targets, sources, strict=True):
                self.started_at[target] = self.started_at[source]
        self.active = kept


def _left_aligned(prompts: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The prompts from their first column on, and the length of each [N]."""
    lengths = prompt_mask.sum(-1)
    width = prompts.shape[1]
    columns = torch.arange(width, device=prompts.device) + (width - lengths)[:, None]
    return prompts.gather(1, columns.clamp(max=width - 1)), lengths

"""Pack rows into sequences: the backbone's input, and the position of each token's state in its output.

The responses to one prompt follow one copy of it. Several such shared-prefix groups form one packed sequence, so a prompt is
computed once and little is padding::

    sequence 0   prompt A | response 1 | response 2 | prompt B | response 3
    sequence 1   prompt A | response 4 | response 5 | padding

A response may have holes: tokens that the policy read, and did not choose. They are tokens as all others here.

Position ids count from the start of each row. The attention mask lets a response attend to its prompt and itself only.
Every state therefore equals the state of the row alone, and so does every gradient.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.types import Rows

ATTENTION = 4
"""Attention over a sequence of this times the hidden size costs as much as the rest of a layer (measured)."""
STEPS = [2 ** (step / 4) for step in range(13)]
"""Candidate sequence lengths, as multiples of the longest row."""


@dataclass(frozen=True)
class PackedSequences:
    """Hold L sequences of S tokens that contain B rows; a place is sequence × S + column."""

    tokens: Tensor
    """int64 [L, S]."""
    positions: Tensor
    """int64 [L, S]; position ids, from 0 for each row."""
    attention_mask: Tensor | None
    """bool [L, 1, S, S]; None where each sequence is one row with padding on its right, which causal attention ignores."""
    prompt_end: Tensor
    """int64 [B]; the place of the last token of each row's prompt."""
    response: Tensor
    """int64 [B]; the place of each row's first response token."""

    def before(self, row: Tensor, at: Tensor) -> Tensor:
        """Return the place of the token before response token `at` [N] of `row` [N]; int64 [N], the prompt's end for 0."""
        return torch.where(at == 0, self.prompt_end[row], self.response[row] + at - 1)


class RowSizes(NamedTuple):
    """Hold the numbers that determine a layout; B of each."""

    prompt: list[int]
    """Prompt tokens; an empty prompt is replaced by one padding token before the response."""
    fed: list[int]
    """Response tokens that the backbone reads."""
    same: list[int]
    """A number that rows with the same prompt share."""
    start: list[int]
    """The column where the prompt begins; a prompt has no gaps."""
    kept: list[int]
    """0 for skipped rows. The first row is kept if all others are skipped, because every pass calls the backbone once."""


def row_sizes(rows: Rows, fed: Tensor, kept: Tensor) -> RowSizes:
    """Measure the rows that are `kept` (bool [B]), with the first `fed` (int64 [B]) tokens of their responses."""
    prompts = rows.tokens[:, : rows.prompt_mask.shape[1]].masked_fill(~rows.prompt_mask, -1)
    prompt, start = rows.prompt_mask.sum(-1).clamp(min=1), rows.prompt_mask.long().argmax(-1)
    numbers = torch.stack([prompt, fed * kept, start, kept.long()], 1)
    numbers, prompts = torch.cat([numbers, prompts], 1).cpu().tensor_split([4], 1)  # waits for the device once
    same = torch.unique(prompts, dim=0, return_inverse=True)[1]
    prompt, fed, start, kept = numbers.T
    sizes = RowSizes(*torch.stack([prompt, fed, same, start, kept]).tolist())
    return sizes if any(sizes.kept) else sizes._replace(kept=[1, *sizes.kept[1:]])


class PrefixGroup(NamedTuple):
    """Hold the rows whose responses follow one copy of their prompt."""

    rows: list[int]
    length: int
    """Tokens of the prompt and the responses."""


Layout = list[list[PrefixGroup]]
"""The shared-prefix groups of each packed sequence."""


def cheapest_layout(sizes: RowSizes, width: int, window: int, limit: int = 2**62) -> Layout:
    """Choose the cheapest of: one sequence per row, and rows packed into sequences of a few candidate lengths.

    A sequence of S tokens costs S (1 + S / (4 H)): a cost per token, and attention, which a mask does not reduce.
    A sequence of one row needs no mask, and half the attention.

    Args:
        sizes: of the rows.
        width: H, the hidden size of the model.
        window: maximum length of a sequence of several rows; 0 for a model that does not support packing.
        limit: maximum number of tokens of all sequences, which a layout exceeds only if every candidate does.
    """
    rows = [row for row, kept in enumerate(sizes.kept) if kept]
    single = [[PrefixGroup([row], sizes.prompt[row] + sizes.fed[row])] for row in rows]
    longest = sequence_length(single)
    lengths = [min(int(step * longest), window) for step in STEPS if len(rows) > 1 and longest <= window]
    packed = [_best_fit(_prefix_groups(rows, sizes, length), length) for length in dict.fromkeys(lengths)]
    return min([single, *packed], key=lambda layout: (_area(layout) > limit, _cost(layout, width)))


def _area(layout: Layout) -> int:
    return len(layout) * sequence_length(layout)


def _cost(layout: Layout, width: int) -> float:
    attention = sequence_length(layout) / (ATTENTION * width)
    return _area(layout) * (1 + attention / (2 if _is_unpacked(layout) else 1))


def sequence_length(layout: Layout) -> int:
    """Return S, the tokens of the longest sequence."""
    return max(sum(group.length for group in sequence) for sequence in layout)


def _is_unpacked(layout: Layout) -> bool:
    return all(len(sequence) == 1 and len(sequence[0].rows) == 1 for sequence in layout)


def _prefix_groups(rows: list[int], sizes: RowSizes, longest: int) -> list[PrefixGroup]:
    """Group rows by prompt, longest responses first; a prompt is repeated where `longest` tokens do not hold its group."""
    groups: list[PrefixGroup] = []
    previous = None
    for row in sorted(rows, key=lambda row: (sizes.same[row], -sizes.fed[row])):
        if sizes.same[row] == previous and groups[-1].length + sizes.fed[row] <= longest:
            groups[-1] = PrefixGroup([*groups[-1].rows, row], groups[-1].length + sizes.fed[row])
        else:
            groups.append(PrefixGroup([row], sizes.prompt[row] + sizes.fed[row]))
        previous = sizes.same[row]
    return groups


def _best_fit(groups: list[PrefixGroup], length: int) -> Layout:
    """Pack groups into sequences of at most `length` tokens by best-fit decreasing bin packing."""
    layout: Layout = []
    room: list[tuple[int, int]] = []  # free tokens of each sequence, in ascending order
    for group in sorted(groups, key=lambda group: -group.length):
        place = bisect_left(room, (group.length, -1))
        free, sequence = room.pop(place) if place < len(room) else (length, len(layout))
        if sequence == len(layout):
            layout.append([])
        layout[sequence].append(group)
        insort(room, (free - group.length, sequence))
    return layout


def pack_rows(rows: Rows, sizes: RowSizes, layout: Layout) -> PackedSequences:
    """Build the tensors of a layout, on the device of the rows."""
    length = sequence_length(layout)
    prompt_at, response_at = _places(layout, sizes, length)
    prompt, fed, start = (torch.tensor(x) for x in (sizes.prompt, sizes.fed, sizes.start))
    heads = torch.tensor([group.rows[0] for sequence in layout for group in sequence])
    # per place: index of its token, position id, group and response; padding is a group by itself
    table = torch.tensor([0, 0, -1, -1])[:, None].repeat(1, len(layout) * length)
    columns, width = rows.prompt_mask.shape[1], rows.tokens.shape[1]
    head, within = _row_and_offset(prompt[heads])
    row = heads[head]
    places = prompt_at[row] + within
    table[:3, places] = torch.stack([row * width + start[row] + within, within, prompt_at[row]])
    row, within = _row_and_offset(fed)
    places = response_at[row] + within
    table[:, places] = torch.stack(
        [row * width + columns + within, prompt[row] + within, prompt_at[row], places - within]
    )
    table = table.view(4, len(layout), length).to(rows.tokens.device)
    attention_mask = None if _is_unpacked(layout) else _block_mask(table[2], table[3])
    ends = (prompt_at + prompt - 1).to(table.device)
    return PackedSequences(
        rows.tokens.flatten()[table[0]], table[1], attention_mask, ends, response_at.to(table.device)
    )


def _places(layout: Layout, sizes: RowSizes, length: int) -> tuple[Tensor, Tensor]:
    """Return the places where each row's prompt and response begin, int64 [B] each; 0 for skipped rows."""
    prompt_at, response_at = torch.zeros(2, len(sizes.kept), dtype=torch.long).tolist()
    for number, sequence in enumerate(layout):
        place = number * length
        for group in sequence:
            start, place = place, place + sizes.prompt[group.rows[0]]
            for row in group.rows:
                prompt_at[row], response_at[row] = start, place
                place += sizes.fed[row]
    return torch.tensor(prompt_at), torch.tensor(response_at)


def _row_and_offset(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number the elements of runs of `counts` elements: the run of each element, and its offset in the run.

    >>> _row_and_offset(torch.tensor([2, 0, 1]))
    (tensor([0, 0, 2]), tensor([0, 1, 0]))
    """
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]


def _block_mask(group: Tensor, response: Tensor) -> Tensor:
    """Build the mask, bool [L, 1, S, S]: attend to earlier tokens of the prompt or response in the same group."""
    same = group[:, :, None] == group[:, None]
    open_to = (response[:, None] == -1) | (response[:, :, None] == response[:, None])
    return (same & open_to).tril()[:, None]

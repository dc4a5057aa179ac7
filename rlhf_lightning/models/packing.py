"""Rows laid end to end into lines: what a trunk is given, and where in what it returns the state of each token stands.

The responses to one prompt stand behind one copy of it, and several such bundles in one line, so that a prompt is computed
once and next to nothing is padding::

    line 0   prompt A | response 1 | response 2 | prompt B | response 3
    line 1   prompt A | response 4 | response 5 | padding

Positions count from the beginning of each row, and a mask lets a response see its prompt and itself and nothing else: every
state is that of the row alone, and so is every gradient.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.types import Rows

ATTENTION = 4
"""Attention over a line as long as this times the width of the model costs as much as the rest of a layer (measured)."""
STEPS = [2 ** (step / 4) for step in range(13)]
"""Lengths of lines that are tried, as multiples of the longest row."""


@dataclass(frozen=True)
class PackedSequences:
    """L lines of S tokens that hold B rows; a place is line x S + column."""

    tokens: Tensor
    """int64 [L, S]."""
    positions: Tensor
    """int64 [L, S]; from 0 for each row, whatever stands before it in the line."""
    attention_mask: Tensor | None
    """bool [L, 1, S, S]; None where each line begins with its only row: padding behind it is seen by nothing before it."""
    prompt_end: Tensor
    """int64 [B]; the place of the last token of each row's prompt."""
    response: Tensor
    """int64 [B]; the place of its first response token."""

    def before(self, lengths: Tensor) -> Tensor:
        """int64 [N]: for each of a row's `lengths` [B] response tokens, row by row, the place of the token before it."""
        owner, within = _row_and_offset(lengths)
        return torch.where(within == 0, self.prompt_end[owner], self.response[owner] + within - 1)

    def last(self, lengths: Tensor) -> Tensor:
        """int64 [B]: the place of the last of a row's `lengths` [B] response tokens, or of its prompt where it has none."""
        return torch.where(lengths == 0, self.prompt_end, self.response + lengths - 1)


class RowSizes(NamedTuple):
    """What an arrangement is made from; B numbers each."""

    prompt: list[int]
    """Tokens; a row without a prompt begins with one token of the padding before its response."""
    fed: list[int]
    """Response tokens that the trunk is given."""
    same: list[int]
    """A number that rows with the same prompt share."""
    start: list[int]
    """The column where the prompt begins; it has no holes."""
    kept: list[int]
    """0 for rows that are left out; the first row stays if all could be, as every pass is one call of the trunk."""


def row_sizes(rows: Rows, fed: Tensor, kept: Tensor) -> RowSizes:
    """The sizes of the rows that are `kept` (bool [B]), with the first `fed` (int64 [B]) tokens of their responses."""
    prompts = rows.tokens[:, : rows.prompt_mask.shape[1]].masked_fill(~rows.prompt_mask, -1)
    prompt, start = rows.prompt_mask.sum(-1).clamp(min=1), rows.prompt_mask.long().argmax(-1)
    numbers = torch.stack([prompt, fed * kept, start, kept.long()], 1)
    numbers, prompts = torch.cat([numbers, prompts], 1).cpu().tensor_split([4], 1)  # waits for the device once
    same = torch.unique(prompts, dim=0, return_inverse=True)[1]
    prompt, fed, start, kept = numbers.T
    sizes = RowSizes(*torch.stack([prompt, fed, same, start, kept]).tolist())
    return sizes if any(sizes.kept) else sizes._replace(kept=[1, *sizes.kept[1:]])


class PrefixGroup(NamedTuple):
    """A copy of a prompt and the rows whose responses stand behind it."""

    rows: list[int]
    length: int


Layout = list[list[PrefixGroup]]
"""The bundles of each line."""


def cheapest_layout(sizes: RowSizes, width: int, window: int, limit: int = 2**62) -> Layout:
    """The cheapest of: a line for each row, and rows packed into lines of a few lengths.

    A line of S tokens costs S (1 + S / (4 H)): what grows with the tokens, and attention, which a mask does not make cheaper.
    A line of one row needs no mask, and half the attention.

    Args:
        sizes: of the rows.
        width: H, of the model.
        window: the longest line that several rows may share; 0 for a model that cannot read such lines.
        limit: tokens that the lines should have together, if any choice has that few.
    """
    rows = [row for row, kept in enumerate(sizes.kept) if kept]
    single = [[PrefixGroup([row], sizes.prompt[row] + sizes.fed[row])] for row in rows]
    longest = sequence_length(single)
    lengths = [min(int(step * longest), window) for step in STEPS if len(rows) > 1 and longest <= window]
    packed = [_pack_groups(_prefix_groups(rows, sizes, length), length) for length in dict.fromkeys(lengths)]
    return min([single, *packed], key=lambda lines: (_area(lines) > limit, _cost(lines, width)))


def _area(lines: Layout) -> int:
    return len(lines) * sequence_length(lines)


def _cost(lines: Layout, width: int) -> float:
    attention = sequence_length(lines) / (ATTENTION * width)
    return _area(lines) * (1 + attention / (2 if _is_unpacked(lines) else 1))


def sequence_length(lines: Layout) -> int:
    """S: the longest line's tokens."""
    return max(map(_length, lines))


def _length(line: list[PrefixGroup]) -> int:
    return sum(group.length for group in line)


def _is_unpacked(lines: Layout) -> bool:
    return all(len(line) == 1 and len(line[0].rows) == 1 for line in lines)


def _prefix_groups(rows: list[int], sizes: RowSizes, longest: int) -> list[PrefixGroup]:
    """Each prompt with its responses, the longest first; again with further ones where `longest` tokens do not hold all."""
    found: list[PrefixGroup] = []
    previous = None
    for row in sorted(rows, key=lambda row: (sizes.same[row], -sizes.fed[row])):
        if sizes.same[row] == previous and found[-1].length + sizes.fed[row] <= longest:
            found[-1] = PrefixGroup([*found[-1].rows, row], found[-1].length + sizes.fed[row])
        else:
            found.append(PrefixGroup([row], sizes.prompt[row] + sizes.fed[row]))
        previous = sizes.same[row]
    return found


def _pack_groups(prefix_groups: list[PrefixGroup], length: int) -> Layout:
    """Lines of at most `length`: the longest bundle first, each into the fullest line that has room for it."""
    lines: Layout = []
    room: list[tuple[int, int]] = []  # what is left of each line, the least first
    for group in sorted(prefix_groups, key=lambda group: -group.length):
        place = bisect_left(room, (group.length, -1))
        left, line = room.pop(place) if place < len(room) else (length, len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append(group)
        insort(room, (left - group.length, line))
    return lines


def pack_rows(rows: Rows, sizes: RowSizes, layout: Layout) -> PackedSequences:
    """The tensors of an arrangement, on the device of the rows."""
    length = sequence_length(layout)
    prompt_at, response_at = _places(layout, sizes, length)
    prompt, fed, start = (torch.tensor(x) for x in (sizes.prompt, sizes.fed, sizes.start))
    heads = torch.tensor([group.rows[0] for line in layout for group in line])
    # of every place: where its token comes from, its position, its bundle and its response; padding is a bundle of its own
    table = torch.tensor([0, 0, -1, -1])[:, None].repeat(1, len(layout) * length)
    columns, width = rows.prompt_mask.shape[1], rows.tokens.shape[1]
    which, within = _row_and_offset(prompt[heads])
    row = heads[which]
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
    """int64 [B] twice: the place where each row's prompt begins, and its response; 0 for rows that are left out."""
    prompt_at, response_at = torch.zeros(2, len(sizes.kept), dtype=torch.long).tolist()
    for number, line in enumerate(layout):
        place = number * length
        for group in line:
            start, place = place, place + sizes.prompt[group.rows[0]]
            for row in group.rows:
                prompt_at[row], response_at[row] = start, place
                place += sizes.fed[row]
    return torch.tensor(prompt_at), torch.tensor(response_at)


def _row_and_offset(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Two int64 [counts.sum()]: which run of `counts` elements each belongs to, and its place in the run.

    >>> _row_and_offset(torch.tensor([2, 0, 1]))
    (tensor([0, 0, 2]), tensor([0, 1, 0]))
    """
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]


def _block_mask(group: Tensor, response: Tensor) -> Tensor:
    """bool [L, 1, S, S]: a token sees what comes before it in its bundle, if that is the prompt or its own response."""
    same = group[:, :, None] == group[:, None]
    open_to = (response[:, None] == -1) | (response[:, :, None] == response[:, None])
    return (same & open_to).tril()[:, None]

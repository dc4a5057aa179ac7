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
class Lines:
    """L lines of S tokens that hold B rows; a place is line x S + column."""

    tokens: Tensor
    """int64 [L, S]."""
    positions: Tensor
    """int64 [L, S]; from 0 for each row, whatever stands before it in the line."""
    sees: Tensor | None
    """bool [L, 1, S, S]; None where each line begins with its only row: padding behind it is seen by nothing before it."""
    prompt_end: Tensor
    """int64 [B]; the place of the last token of each row's prompt."""
    response: Tensor
    """int64 [B]; the place of its first response token."""

    def before(self, lengths: Tensor) -> Tensor:
        """int64 [N]: for each of a row's `lengths` [B] response tokens, row by row, the place of the token before it."""
        owner, within = _counted(lengths)
        return torch.where(within == 0, self.prompt_end[owner], self.response[owner] + within - 1)

    def last(self, lengths: Tensor) -> Tensor:
        """int64 [B]: the place of the last of a row's `lengths` [B] response tokens, or of its prompt where it has none."""
        return torch.where(lengths == 0, self.prompt_end, self.response + lengths - 1)


class Sizes(NamedTuple):
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


def sizes_of(rows: Rows, fed: Tensor, kept: Tensor) -> Sizes:
    """The sizes of the rows that are `kept` (bool [B]), with the first `fed` (int64 [B]) tokens of their responses."""
    prompts = rows.tokens[:, : rows.prompt_mask.shape[1]].masked_fill(~rows.prompt_mask, -1)
    prompt, start = rows.prompt_mask.sum(-1).clamp(min=1), rows.prompt_mask.long().argmax(-1)
    numbers = torch.stack([prompt, fed * kept, start, kept.long()], 1)
    numbers, prompts = torch.cat([numbers, prompts], 1).cpu().tensor_split([4], 1)  # waits for the device once
    same = torch.unique(prompts, dim=0, return_inverse=True)[1]
    prompt, fed, start, kept = numbers.T
    sizes = Sizes(*torch.stack([prompt, fed, same, start, kept]).tolist())
    return sizes if any(sizes.kept) else sizes._replace(kept=[1, *sizes.kept[1:]])


class Bundle(NamedTuple):
    """A copy of a prompt and the rows whose responses stand behind it."""

    rows: list[int]
    length: int


Arrangement = list[list[Bundle]]
"""The bundles of each line."""


def cheapest(sizes: Sizes, width: int, window: int, limit: int = 2**62) -> Arrangement:
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
    single = [[Bundle([row], sizes.prompt[row] + sizes.fed[row])] for row in rows]
    longest = line_length(single)
    lengths = [min(int(step * longest), window) for step in STEPS if len(rows) > 1 and longest <= window]
    packed = [_filled(_bundles(rows, sizes, length), length) for length in dict.fromkeys(lengths)]
    return min([single, *packed], key=lambda lines: (_area(lines) > limit, _cost(lines, width)))


def _area(lines: Arrangement) -> int:
    return len(lines) * line_length(lines)


def _cost(lines: Arrangement, width: int) -> float:
    attention = line_length(lines) / (ATTENTION * width)
    return _area(lines) * (1 + attention / (2 if _is_single(lines) else 1))


def line_length(lines: Arrangement) -> int:
    """S: the longest line's tokens."""
    return max(map(_length, lines))


def _length(line: list[Bundle]) -> int:
    return sum(bundle.length for bundle in line)


def _is_single(lines: Arrangement) -> bool:
    return all(len(line) == 1 and len(line[0].rows) == 1 for line in lines)


def _bundles(rows: list[int], sizes: Sizes, longest: int) -> list[Bundle]:
    """Each prompt with its responses, the longest first; again with further ones where `longest` tokens do not hold all."""
    found: list[Bundle] = []
    previous = None
    for row in sorted(rows, key=lambda row: (sizes.same[row], -sizes.fed[row])):
        if sizes.same[row] == previous and found[-1].length + sizes.fed[row] <= longest:
            found[-1] = Bundle([*found[-1].rows, row], found[-1].length + sizes.fed[row])
        else:
            found.append(Bundle([row], sizes.prompt[row] + sizes.fed[row]))
        previous = sizes.same[row]
    return found


def _filled(bundles: list[Bundle], length: int) -> Arrangement:
    """Lines of at most `length`: the longest bundle first, each into the fullest line that has room for it."""
    lines: Arrangement = []
    room: list[tuple[int, int]] = []  # what is left of each line, the least first
    for bundle in sorted(bundles, key=lambda bundle: -bundle.length):
        place = bisect_left(room, (bundle.length, -1))
        left, line = room.pop(place) if place < len(room) else (length, len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append(bundle)
        insort(room, (left - bundle.length, line))
    return lines


def lines_of(rows: Rows, sizes: Sizes, arrangement: Arrangement) -> Lines:
    """The tensors of an arrangement, on the device of the rows."""
    length = line_length(arrangement)
    prompt_at, response_at = _places(arrangement, sizes, length)
    prompt, fed, start = (torch.tensor(x) for x in (sizes.prompt, sizes.fed, sizes.start))
    heads = torch.tensor([bundle.rows[0] for line in arrangement for bundle in line])
    # of every place: where its token comes from, its position, its bundle and its response; padding is a bundle of its own
    table = torch.tensor([0, 0, -1, -1])[:, None].repeat(1, len(arrangement) * length)
    columns, width = rows.prompt_mask.shape[1], rows.tokens.shape[1]
    which, within = _counted(prompt[heads])
    row = heads[which]
    places = prompt_at[row] + within
    table[:3, places] = torch.stack([row * width + start[row] + within, within, prompt_at[row]])
    row, within = _counted(fed)
    places = response_at[row] + within
    table[:, places] = torch.stack(
        [row * width + columns + within, prompt[row] + within, prompt_at[row], places - within]
    )
    table = table.view(4, len(arrangement), length).to(rows.tokens.device)
    sees = None if _is_single(arrangement) else _sees(table[2], table[3])
    ends = (prompt_at + prompt - 1).to(table.device)
    return Lines(rows.tokens.flatten()[table[0]], table[1], sees, ends, response_at.to(table.device))


def _places(arrangement: Arrangement, sizes: Sizes, length: int) -> tuple[Tensor, Tensor]:
    """int64 [B] twice: the place where each row's prompt begins, and its response; 0 for rows that are left out."""
    prompt_at, response_at = torch.zeros(2, len(sizes.kept), dtype=torch.long).tolist()
    for number, line in enumerate(arrangement):
        place = number * length
        for bundle in line:
            start, place = place, place + sizes.prompt[bundle.rows[0]]
            for row in bundle.rows:
                prompt_at[row], response_at[row] = start, place
                place += sizes.fed[row]
    return torch.tensor(prompt_at), torch.tensor(response_at)


def _counted(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Two int64 [counts.sum()]: which run of `counts` elements each belongs to, and its place in the run.

    >>> _counted(torch.tensor([2, 0, 1]))
    (tensor([0, 0, 2]), tensor([0, 1, 0]))
    """
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]


def _sees(bundle: Tensor, response: Tensor) -> Tensor:
    """bool [L, 1, S, S]: a token sees what comes before it in its bundle, if that is the prompt or its own response."""
    same = bundle[:, :, None] == bundle[:, None]
    open_to = (response[:, None] == -1) | (response[:, :, None] == response[:, None])
    return (same & open_to).tril()[:, None]

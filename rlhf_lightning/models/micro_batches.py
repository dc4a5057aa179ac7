"""Rows cut into pieces of about as many tokens: parts of an optimiser step, and what one pass of a model can hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_max
from rlhf_lightning.types import Rows, RowsT


def balanced_partition(rows: Rows, loss_groups: Tensor, count: int) -> list[Tensor]:
    """Indices of rows for each of `count` pieces of about as many tokens; some are empty where there are few.

    A piece computes a prompt once, so the responses to it stay together, unless the largest piece is smaller without.

    Args:
        rows: B of them.
        units: int64 [B]; rows with the same number are never separated. They have one prompt.
        count: how many pieces.
    """
    micro_batch = _partition_blocks(_blocks(rows, loss_groups, True), count)[0]
    return [torch.nonzero(micro_batch == index).flatten() for index in range(count)]


def micro_batches(rows: RowsT, loss_groups: Tensor, limit: int | None, shares: bool) -> list[RowsT]:
    """`rows` in as few pieces as hold at most `limit` tokens each, and in as many on every rank.

    A unit of more tokens stands alone, and pieces of a rank that needs fewer than another count for nothing.

    Args:
        rows: B of them.
        units: see `balanced_partition`.
        limit: tokens; None cuts nothing.
        shares: a piece computes a prompt once, and pads nothing; else every row costs as much as the longest.
    """
    if limit is None or int(all_max(torch.tensor(rows.tokens.numel()))) <= limit:  # padding and all
        return [rows]
    blocks = _blocks(rows, loss_groups, shares)
    longest = max(limit, *blocks[-1].tokens)
    count = max(1, -(-sum(blocks[0].tokens) // longest))
    while _partition_blocks(blocks, count)[1] > longest:
        count += 1
    count = int(all_max(torch.tensor(count)))
    if count == 1:
        return [rows]
    micro_batch, device = _partition_blocks(blocks, count)[0], rows.tokens.device
    return [
        micro_batch_of(rows, torch.nonzero(micro_batch == index).flatten().to(device), loss_groups)
        for index in range(count)
    ]


def micro_batch_of(rows: RowsT, index: Tensor, loss_groups: Tensor) -> RowsT:
    """The rows of `index`, trimmed; the first unit with an empty mask where there are none, so that ranks keep step."""
    if len(index):
        return trim(rows.rows(index))
    first = rows.rows(loss_groups == loss_groups[0])
    return trim(replace(first, mask=torch.zeros_like(first.mask)))


class _Blocks(NamedTuple):
    """Rows that go to a piece together."""

    of: Tensor
    """int64 [B]; the block of each row."""
    tokens: list[int]
    """Of each block."""


def _blocks(rows: Rows, loss_groups: Tensor, shares: bool) -> tuple[_Blocks, _Blocks]:
    """All responses to a prompt together, and only the rows of a unit."""
    prompts, responses = torch.stack([rows.prompt_mask.sum(-1), rows.response_lengths()]).cpu()
    if not shares:
        prompts, responses = torch.zeros_like(prompts), torch.full_like(responses, int((prompts + responses).max()))
    found = []
    for label in (rows.groups, loss_groups):
        distinct, block = torch.unique(label.cpu(), return_inverse=True)
        tokens = torch.zeros_like(distinct).index_copy(0, block, prompts).index_add(0, block, responses)
        found.append(_Blocks(block, tokens.tolist()))
    return found[0], found[1]


def _partition_blocks(choices: tuple[_Blocks, _Blocks], count: int) -> tuple[Tensor, int]:
    """int64 [B]: the piece of each row, by those blocks that make the largest piece the smallest; and its tokens."""
    found = []
    for blocks in choices:
        chosen, largest = greedy_partition(blocks.tokens, count)
        found.append((torch.tensor(chosen)[blocks.of], largest))
    return min(found, key=lambda deal: deal[1])


def trim(rows: RowsT) -> RowsT:
    """Without the columns that are padding in every row: on the left of the prompts and on the right of the responses.

    At least one column of each stays.
    """
    width = rows.prompt_mask.shape[1]
    used = torch.cat([rows.prompt_mask, rows.mask], 1).any(0).tolist()
    first = next((column for column in range(width) if used[column]), width - 1)
    last = next((column for column in range(len(used) - width, 1, -1) if used[width + column - 1]), 1)
    cut: dict[str, Any] = {}
    for name, value in rows.tensors().items():
        if value.dim() == 2 and name not in ("tokens", "prompt_mask"):
            cut[name] = value[:, :last]
    return replace(rows, tokens=rows.tokens[:, first : width + last], prompt_mask=rows.prompt_mask[:, first:], **cut)


def greedy_partition(sizes: list[int], parts: int) -> tuple[list[int], int]:
    """Which part each goes to, the largest first, each to the part that has least (Graham 1969); and the largest part.

    >>> greedy_partition([1, 5, 3, 3], 2)
    ([0, 0, 1, 1], 6)
    """
    totals, chosen = [0] * parts, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        chosen[index] = totals.index(min(totals))
        totals[chosen[index]] += sizes[index]
    return chosen, max(totals)

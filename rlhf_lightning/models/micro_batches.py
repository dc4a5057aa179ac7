"""Split rows into micro-batches of about as many tokens each, which one pass of an optimiser step can hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_max
from rlhf_lightning.types import NOT_PER_TOKEN, Rows, RowsT


def balanced_partition(rows: Rows, loss_groups: Tensor, count: int) -> list[Tensor]:
    """Partition row indices into `count` micro-batches of about as many tokens; some are empty where rows are few.

    A micro-batch computes a prompt once. The responses to a prompt therefore stay together, unless the largest micro-batch
    is smaller without this rule.

    Args:
        rows: B of them.
        loss_groups: int64 [B]; rows with the same number are never separated. They have one prompt.
        count: number of micro-batches.
    """
    assignment = _assign_blocks(_blocks(rows, loss_groups, True), count)[0]
    return [torch.nonzero(assignment == index).flatten() for index in range(count)]


def micro_batches(rows: RowsT, loss_groups: Tensor, limit: int | None, shares: bool) -> list[RowsT]:
    """Split `rows` into as few micro-batches as hold at most `limit` tokens each, and into as many on every rank.

    A loss group of more tokens is a micro-batch by itself. A rank that needs fewer micro-batches than another adds
    micro-batches of weight 0.

    Args:
        rows: B of them.
        loss_groups: int64 [B]; as in `balanced_partition`.
        limit: tokens; None splits nothing.
        shares: True where packing computes a prompt once and pads nothing. Otherwise every row costs as many tokens as the
            longest row.
    """
    if (
        limit is None or int(all_max(torch.tensor(rows.tokens.numel()))) <= limit
    ):  # an upper bound that includes padding
        return [rows]
    blocks = _blocks(rows, loss_groups, shares)
    longest = max(limit, *blocks[-1].tokens)
    count = max(1, -(-sum(blocks[0].tokens) // longest))
    while _assign_blocks(blocks, count)[1] > longest:
        count += 1
    count = int(all_max(torch.tensor(count)))
    if count == 1:
        return [rows]
    assignment, device = _assign_blocks(blocks, count)[0], rows.tokens.device
    indices = [torch.nonzero(assignment == index).flatten().to(device) for index in range(count)]
    return [select_micro_batch(rows, index, loss_groups) for index in indices]


def select_micro_batch(rows: RowsT, index: Tensor, loss_groups: Tensor) -> RowsT:
    """Select and trim the rows of `index`; an empty index gives the first loss group with weight 0, to match collectives."""
    if len(index):
        return trim(rows.rows(index))
    first = rows.rows(loss_groups == loss_groups[0])
    return trim(replace(first, mask=torch.zeros_like(first.mask)))


class _Blocks(NamedTuple):
    """Describe sets of rows that go to one micro-batch together."""

    of: Tensor
    """int64 [B]; the block of each row."""
    tokens: list[int]
    """Tokens of each block."""


def _blocks(rows: Rows, loss_groups: Tensor, shares: bool) -> tuple[_Blocks, _Blocks]:
    """Return two choices of blocks: all responses to a prompt, and the rows of a loss group."""
    prompts, responses = torch.stack([rows.prompt_mask.sum(-1), rows.reach]).cpu()
    if not shares:
        prompts, responses = torch.zeros_like(prompts), torch.full_like(responses, int((prompts + responses).max()))

    def blocks_by(label: Tensor) -> _Blocks:
        distinct, block = torch.unique(label.cpu(), return_inverse=True)
        tokens = torch.zeros_like(distinct).index_copy(0, block, prompts).index_add(0, block, responses)
        return _Blocks(block, tokens.tolist())

    return blocks_by(rows.groups), blocks_by(loss_groups)


def _assign_blocks(choices: tuple[_Blocks, _Blocks], count: int) -> tuple[Tensor, int]:
    """Assign rows to micro-batches by the choice of blocks whose largest micro-batch is the smaller.

    Returns:
        The micro-batch of each row, int64 [B], and the tokens of the largest micro-batch.
    """
    assignments = []
    for blocks in choices:
        micro_batch, largest = partition_largest_first(blocks.tokens, count)
        assignments.append((torch.tensor(micro_batch)[blocks.of], largest))
    return min(assignments, key=lambda assignment: assignment[1])


def trim(rows: RowsT) -> RowsT:
    """Remove the columns that are padding in every row: on the left of the prompts and on the right of the responses.

    At least one column of each stays.
    """
    width = rows.prompt_mask.shape[1]
    used = torch.cat([rows.prompt_mask, rows.mask], 1).any(0).tolist()
    first = next((column for column in range(width) if used[column]), width - 1)
    last = next((column for column in range(len(used) - width, 1, -1) if used[width + column - 1]), 1)
    trimmed: dict[str, Any] = {}
    for name, value in rows.tensors().items():
        if value.dim() >= 2 and name not in NOT_PER_TOKEN:
            trimmed[name] = value[:, :last]
    return replace(
        rows, tokens=rows.tokens[:, first : width + last], prompt_mask=rows.prompt_mask[:, first:], **trimmed
    )


def partition_largest_first(sizes: list[int], count: int) -> tuple[list[int], int]:
    """Assign each size, in descending order, to the bin with the smallest total (Graham 1969).

    Returns:
        The bin of each size, and the largest total.

    >>> partition_largest_first([1, 5, 3, 3], 2)
    ([0, 0, 1, 1], 6)
    """
    totals, assignment = [0] * count, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        assignment[index] = totals.index(min(totals))
        totals[assignment[index]] += sizes[index]
    return assignment, max(totals)

"""Run a backbone on rows, packed where packing is exact, and in micro-batches where no gradient is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.models.backbone import backbone_states, capabilities_of, max_packed_length, supports_packing
from rlhf_lightning.models.packing import (
    Layout,
    PackedSequences,
    RowSizes,
    cheapest_layout,
    pack_rows,
    row_sizes,
    sequence_length,
)
from rlhf_lightning.types import Rows

RowTensors = tuple[Tensor | None, ...]
"""Tensors with a row dimension; an entry is None where it was not requested."""


def hidden_states_before(backbone: Any, rows: Rows) -> Tensor:
    """Compute the last hidden state before each of the N response tokens under the mask, row by row.

    The tokens that the policy read between its own are fed too. The last token is not, as no chosen token follows it. Rows
    without a response are skipped.

    Returns:
        [N, H].
    """
    reach = rows.reach
    packed = _pack(backbone, rows, (reach - 1).clamp(min=0), reach > 0)
    return backbone_states(backbone, packed).index_select(0, packed.before(*rows.mask.nonzero(as_tuple=True)))


def final_hidden_states(backbone: Any, rows: Rows) -> Tensor:
    """Compute the last hidden state at the last token of each response, or of the prompt where the response is empty.

    Returns:
        [B, H].
    """
    reach = rows.reach
    packed = _pack(backbone, rows, reach, reach >= 0)
    each = torch.arange(len(rows), device=reach.device)
    return backbone_states(backbone, packed).index_select(0, packed.before(each, reach))


def map_micro_batches(backbone: Any, rows: Rows, compute: Callable[[Rows], RowTensors]) -> RowTensors:
    """Apply `compute` to micro-batches of at most `max_tokens_per_batch` tokens, and join the results in row order.

    With gradients the rows stay one micro-batch, because ranks that share weights wait for each other at every pass.
    Without gradients every rank has all weights (`Stage.evaluation_mode`) and takes as many micro-batches as it needs.
    They are runs of packed sequences, because no loss group must stay together and ranks need not agree on a count; an
    optimiser step is split by `micro_batches.micro_batches`.

    Args:
        backbone: determines the limit and the packing.
        rows: B of them.
        compute: returns tensors of one entry per row.
    """
    limit = capabilities_of(backbone).max_tokens_per_batch
    if limit is None or torch.is_grad_enabled():
        return compute(rows)
    indices = _micro_batch_indices(backbone, rows, limit)
    results = [compute(Rows(*(x[index] for x in _fields(rows)))) for index in indices]
    order = torch.cat(indices).argsort()
    return tuple(None if x[0] is None else torch.cat(x)[order] for x in zip(*results, strict=True))  # type: ignore[arg-type]


def _fields(rows: Rows) -> tuple[Tensor, ...]:
    return rows.tokens, rows.prompt_mask, rows.mask, rows.groups, rows.truncated


def _micro_batch_indices(backbone: Any, rows: Rows, limit: int) -> list[Tensor]:
    """Split row indices so that the packed sequences of each micro-batch hold at most `limit` tokens, or one sequence."""
    layout = _best_layout(backbone, row_sizes(rows, rows.reach, torch.ones_like(rows.groups, dtype=torch.bool)))
    count = max(1, limit // sequence_length(layout))
    micro_batches = [layout[start : start + count] for start in range(0, len(layout), count)]
    indices = [[row for sequence in batch for group in sequence for row in group.rows] for batch in micro_batches]
    return [torch.tensor(index, device=rows.tokens.device) for index in indices]


def _pack(backbone: Any, rows: Rows, fed: Tensor, kept: Tensor) -> PackedSequences:
    sizes = row_sizes(rows, fed, kept)
    return pack_rows(rows, sizes, _best_layout(backbone, sizes))


def _best_layout(backbone: Any, sizes: RowSizes) -> Layout:
    config = backbone.config.get_text_config()
    limit = capabilities_of(backbone).max_tokens_per_batch or 2**62
    window = min(max_packed_length(config), limit) if supports_packing(backbone) else 0
    return cheapest_layout(sizes, config.hidden_size, window, limit)

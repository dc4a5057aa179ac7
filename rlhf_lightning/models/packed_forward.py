"""The last hidden state of every response token, by one call of a trunk on rows that are packed where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.models.backbone import backbone_states, max_packed_length, supports_packing
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

Measured = tuple[Tensor | None, ...]


def hidden_states_before(backbone: Any, rows: Rows) -> Tensor:
    """[N, H]: the last hidden state before each of the N response tokens under the mask, row by row.

    The last token of a response is not fed, as nothing comes after it, and rows without a response are left out.
    """
    lengths = rows.response_lengths()
    lines = _pack(backbone, rows, (lengths - 1).clamp(min=0), lengths > 0)
    within = torch.arange(rows.mask.shape[1], device=lengths.device) < lengths[:, None]
    return backbone_states(backbone, lines).index_select(0, lines.before(lengths)[rows.mask[within]])


def final_hidden_states(backbone: Any, rows: Rows) -> Tensor:
    """[B, H]: the last hidden state at the last token of each row, of its response or else of its prompt."""
    lengths = rows.response_lengths()
    lines = _pack(backbone, rows, lengths, lengths >= 0)
    return backbone_states(backbone, lines).index_select(0, lines.last(lengths))


def in_micro_batches(backbone: Any, rows: Rows, measure: Callable[[Rows], Measured]) -> Measured:
    """What `measure` finds of each row, of as many rows at a time as `max_tokens_per_batch` allows; all with gradients.

    With gradients a pass is one call of the trunk on every rank, as ranks that share weights wait for each other. Without,
    every rank has all weights (`Stage.evaluation_mode`) and takes as many pieces as it needs.
    """
    limit = getattr(backbone, "max_tokens_per_batch", None)
    if limit is None or torch.is_grad_enabled():
        return measure(rows)
    micro_batches = _micro_batches(backbone, rows, limit)
    found = [measure(Rows(*(x[micro_batch] for x in _fields(rows)))) for micro_batch in micro_batches]
    back = torch.cat(micro_batches).argsort()
    return tuple(None if parts[0] is None else torch.cat(parts)[back] for parts in zip(*found, strict=True))  # type: ignore[arg-type]


def _fields(rows: Rows) -> tuple[Tensor, ...]:
    return rows.tokens, rows.prompt_mask, rows.mask, rows.groups, rows.truncated


def _micro_batches(backbone: Any, rows: Rows, limit: int) -> list[Tensor]:
    """Indices of rows whose lines hold at most `limit` tokens together; a row that is longer stands alone."""
    lengths = rows.response_lengths()
    lines = _best_layout(backbone, row_sizes(rows, lengths, lengths >= 0))
    count = max(1, limit // sequence_length(lines))
    parts = [lines[start : start + count] for start in range(0, len(lines), count)]
    indices = [[row for line in part for group in line for row in group.rows] for part in parts]
    return [torch.tensor(index, device=rows.tokens.device) for index in indices]


def _pack(backbone: Any, rows: Rows, fed: Tensor, kept: Tensor) -> PackedSequences:
    sizes = row_sizes(rows, fed, kept)
    return pack_rows(rows, sizes, _best_layout(backbone, sizes))


def _best_layout(backbone: Any, sizes: RowSizes) -> Layout:
    config = backbone.config.get_text_config()
    limit = getattr(backbone, "max_tokens_per_batch", None) or 2**62
    window = min(max_packed_length(config), limit) if supports_packing(backbone) else 0
    return cheapest_layout(sizes, config.hidden_size, window, limit)

"""The last hidden state of every response token, by one call of a trunk on rows that are packed where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.models.backbone import _states, as_read, longest_line, packs
from rlhf_lightning.models.packing import Arrangement, Lines, Sizes, cheapest, line_length, lines_of, sizes_of
from rlhf_lightning.types import Rows

Measured = tuple[Tensor | None, ...]


def states_before(trunk: Any, rows: Rows) -> Tensor:
    """[N, H]: the last hidden state before each of the N response tokens under the mask, row by row.

    The last token of a response is not fed, as nothing comes after it, and rows without a response are left out.
    """
    lengths = rows.mask.sum(-1)
    lines = _laid_out(trunk, rows, (lengths - 1).clamp(min=0), lengths > 0)
    return _states(trunk, lines).index_select(0, lines.before(lengths))


def states_at_end(trunk: Any, rows: Rows) -> Tensor:
    """[B, H]: the last hidden state at the last token of each row, of its response or else of its prompt."""
    lengths = rows.mask.sum(-1)
    lines = _laid_out(trunk, rows, lengths, lengths >= 0)
    return _states(trunk, lines).index_select(0, lines.last(lengths))


def in_pieces(trunk: Any, rows: Rows, measure: Callable[[Rows], Measured]) -> Measured:
    """What `measure` finds of each row, of as many rows at a time as `max_tokens_per_batch` allows; all with gradients.

    With gradients a pass is one call of the trunk on every rank, as ranks that share weights wait for each other. Without,
    every rank has all weights (`Stage.measuring`) and takes as many pieces as it needs.
    """
    limit = getattr(trunk, "max_tokens_per_batch", None)
    if limit is None or torch.is_grad_enabled():
        return measure(rows)
    pieces = _pieces(trunk, rows, limit)
    found = [measure(Rows(*(x[piece] for x in _fields(rows)))) for piece in pieces]
    back = torch.cat(pieces).argsort()
    return tuple(None if parts[0] is None else torch.cat(parts)[back] for parts in zip(*found, strict=True))  # type: ignore[arg-type]


def _fields(rows: Rows) -> tuple[Tensor, ...]:
    return rows.tokens, rows.prompt_mask, rows.mask, rows.groups, rows.truncated


def _pieces(trunk: Any, rows: Rows, limit: int) -> list[Tensor]:
    """Indices of rows whose lines hold at most `limit` tokens together; a row that is longer stands alone."""
    lengths = rows.mask.sum(-1)
    lines = _arranged(trunk, sizes_of(rows, lengths, lengths >= 0))
    count = max(1, limit // line_length(lines))
    parts = [lines[start : start + count] for start in range(0, len(lines), count)]
    indices = [[row for line in part for bundle in line for row in bundle.rows] for part in parts]
    return [torch.tensor(index, device=rows.tokens.device) for index in indices]


def _laid_out(trunk: Any, rows: Rows, fed: Tensor, kept: Tensor) -> Lines:
    sizes = sizes_of(rows, fed, kept)
    return lines_of(rows, sizes, _arranged(trunk, sizes))


def _arranged(trunk: Any, sizes: Sizes) -> Arrangement:
    config = trunk.config.get_text_config()
    limit = getattr(trunk, "max_tokens_per_batch", None) or 2**62
    window = min(longest_line(config), limit) if packs(trunk) else 0
    return cheapest(sizes, config.hidden_size, window, limit)



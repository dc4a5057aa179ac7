"""The last hidden state of every response token, by one call of a trunk on rows that are packed where that is exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.functional.ranks import rank
from rlhf_lightning.models.layout import Arrangement, Bundle, Lines, Sizes, cheapest, line_length, lines_of, sizes_of
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


def _states(trunk: Any, lines: Lines) -> Tensor:
    """[L·S, H]: the last hidden state at every place."""
    mask = torch.ones_like(lines.tokens) if lines.sees is None else as_read(lines.sees, trunk)
    output = trunk(input_ids=lines.tokens, attention_mask=mask, position_ids=lines.positions, use_cache=False)
    return output.last_hidden_state.flatten(0, 1)


def as_read(sees: Tensor, trunk: Any) -> Tensor:
    """A mask [L, 1, S, S] as the attention of `trunk` reads it: bool for SDPA, what to add to the scores for eager attention."""
    if trunk.config.get_text_config()._attn_implementation == "sdpa":
        return sees
    return torch.zeros(sees.shape, dtype=trunk.dtype, device=sees.device).masked_fill(
        ~sees, torch.finfo(trunk.dtype).min
    )


# -- is it exact -----------------------------------------------------------------------------------------------------------


def packs(trunk: Any) -> bool:
    """Whether rows may share a line; found out once, and remembered by the trunk. Ranks that share weights ask together."""
    if not hasattr(trunk, "packs"):
        reason = _refusal(trunk)
        trunk.packs = reason is None
        if reason is not None:
            _say(f"{type(trunk).__name__}: rows are padded and prompts computed for each response, as {reason}")
    return bool(trunk.packs)


@functools.cache
def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def longest_line(config: Any) -> int:
    """Tokens that every layer can look back over: the narrowest window, or what the model has positions for."""
    endings = ("window", "window_size", "chunk_size", "max_position_embeddings")
    found = [x for name, x in vars(config).items() if name.endswith(endings) and isinstance(x, int) and x > 0]
    return min(found, default=2**62)


def _refusal(trunk: Any) -> str | None:
    """Why rows may not share a line; None where they may."""
    config = trunk.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
        "chunked_attention",
    }
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention {config._attn_implementation} takes no block mask"
    if getattr(getattr(config, "attn_config", config), "alibi", False):
        return "its attention counts from the beginning of a line"
    try:
        apart = _difference(trunk, config.vocab_size)
    except Exception as error:  # an architecture may refuse a mask or positions in any way
        return f"it takes no block mask ({type(error).__name__})"
    tolerance = 1e-4 if trunk.dtype == torch.float32 else 0.05  # rounding alone leaves 1e-6, and 0.01 in 16 bits
    return None if apart < tolerance else f"its states would be {apart:.1e} off in one line"


@torch.no_grad()
def _difference(trunk: Any, vocabulary: int) -> float:
    """How far the states of three tiny rows in one line are from those of a line each, over the norm of the latter."""
    device = next(trunk.parameters()).device
    tokens = (torch.arange(33, device=device).view(3, 11) * 7919 + 13) % vocabulary
    tokens[1, :6] = tokens[0, :6]
    prompt_mask = torch.ones(3, 6, dtype=torch.bool, device=device)
    none = torch.zeros(3, dtype=torch.long, device=device)
    rows = Rows(tokens, prompt_mask, torch.ones_like(tokens[:, 6:], dtype=torch.bool), none, none.bool())
    sizes = Sizes([6] * 3, [5] * 3, [0, 0, 1], [0] * 3, [1] * 3)
    together = [[Bundle([0, 1], 16), Bundle([2], 11)]]
    with evaluating(trunk), torch.autocast(device.type, enabled=False):
        found = []
        for arrangement in (together, [[Bundle([row], 11)] for row in range(3)]):
            lines = lines_of(rows, sizes, arrangement)
            found.append(_states(trunk, lines)[lines.before(none + 6)].float())
    return float((found[0] - found[1]).norm() / found[1].norm())


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and anything else that draws random numbers; every module's mode is put back."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training

"""Pieces of a pass: as few as hold so many tokens, units whole, prompts once, as many on every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.rollouts import cutting
from rlhf_lightning.models.micro_batches import pieces
from rlhf_lightning.types import Rows

NUMBERED = torch.arange(12)


def rows_of(prompts: list[int], responses: list[int], groups: list[int]) -> Rows:
    """Rows whose every token is their number."""
    p, t = torch.tensor(prompts), torch.tensor(responses)
    width, length = max(prompts), max(responses)
    tokens = torch.arange(len(p))[:, None].expand(-1, width + length).clone()
    prompt_mask = torch.arange(width) >= width - p[:, None]
    return Rows(
        tokens, prompt_mask, torch.arange(length) < t[:, None], torch.tensor(groups), torch.zeros(len(p)).bool()
    )


def numbers(piece: Rows) -> list[int]:
    return sorted(piece.tokens[:, 0].tolist())


def tokens_of(piece: Rows, shares: bool = True) -> int:
    """What a pass over a piece computes."""
    lengths = piece.mask.sum(-1)
    if not shares:
        return len(piece) * int((lengths + piece.prompt_mask.sum(-1)).max())
    heads = [int(torch.nonzero(piece.groups == group)[0]) for group in piece.groups.unique()]
    return int(lengths.sum() + piece.prompt_mask.sum(-1)[heads].sum())


ROWS = rows_of(
    [9, 9, 9, 5, 5, 5, 7, 7, 7, 3, 3, 3], [4, 8, 2, 6, 6, 1, 9, 9, 3, 5, 2, 7], [g for g in range(4) for _ in range(3)]
)
"""Four prompts with three responses each: 23, 18, 28 and 17 tokens."""


@pytest.mark.parametrize(("limit", "count"), [(None, 1), (86, 1), (85, 2), (45, 2), (44, 3), (28, 4)])
def test_a_prompt_and_its_responses_stay_in_one_of_as_few_pieces_as_can_be(limit: int | None, count: int) -> None:
    found = pieces(ROWS, NUMBERED, limit, shares=True)
    assert len(found) == count
    assert sorted(row for piece in found for row in numbers(piece)) == list(range(12))
    assert all(len(piece.groups.unique()) * 3 == len(piece) for piece in found)
    assert all(tokens_of(piece) <= (limit or 86) for piece in found)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("per_unit", [1, 3])
@pytest.mark.parametrize("limit", [1, 12, 16, 20, 27])
def test_a_unit_is_never_cut_and_stands_alone_where_it_is_too_long(limit: int, per_unit: int, shares: bool) -> None:
    found = pieces(ROWS, NUMBERED // per_unit, limit, shares)
    assert sorted(row for piece in found for row in numbers(piece)) == list(range(12))
    for piece in found:
        units, counts = (torch.tensor(numbers(piece)) // per_unit).unique(return_counts=True)
        assert counts.tolist() == [per_unit] * len(units)
    longest = max(tokens_of(ROWS.rows(NUMBERED // per_unit == unit), True) for unit in range(12 // per_unit))
    if shares:
        assert all(tokens_of(piece) <= max(limit, longest) for piece in found)
    else:
        assert all(tokens_of(piece, False) <= max(limit, 17 * per_unit) for piece in found)


def test_every_tensor_is_trimmed_and_keeps_its_rows() -> None:
    for piece in pieces(ROWS, NUMBERED, 20, shares=True):
        rows = piece.tokens[:, 0]
        assert torch.equal(piece.mask.sum(-1), ROWS.mask.sum(-1)[rows])
        assert torch.equal(piece.prompt_mask.sum(-1), ROWS.prompt_mask.sum(-1)[rows])
        assert torch.equal(piece.groups, ROWS.groups[rows])
        assert piece.mask.any(0).all()
        assert piece.prompt_mask.any(0).all()


def test_a_rank_that_needs_fewer_pieces_takes_as_many_as_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_rank_needs_five(value: Tensor) -> Tensor:
        return value * 100 if int(value) > 20 else value.clamp(min=5)  # first asked for tokens, then for pieces

    monkeypatch.setattr(cutting, "all_max", another_rank_needs_five)
    few: Any = ROWS.rows(NUMBERED < 4)
    found = pieces(few, NUMBERED[:4], 1000, shares=True)
    assert len(found) == 5
    assert sorted(row for piece in found if piece.mask.any() for row in numbers(piece)) == [0, 1, 2, 3]
    assert all(piece.mask.any() or numbers(piece) == [0] for piece in found)

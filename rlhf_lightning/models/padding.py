"""Padding of token ids to tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.types import Rows


def left_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """int64 [N, P] and bool [N, P]: sequences that end in the last column."""
    width = max(1, max(map(len, sequences)))
    tokens = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        if len(ids):
            tokens[row, width - len(ids) :], mask[row, width - len(ids) :] = torch.tensor(ids), True
    return tokens.to(device), mask.to(device)


def right_padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """int64 [N, T] and bool [N, T]: sequences that begin in the first column."""
    tokens, mask = left_padded([list(ids)[::-1] for ids in sequences], pad, device)
    return tokens.flip(-1), mask.flip(-1)


def recorded_rows(
    prompts: list[list[int]],
    responses: list[list[int]],
    groups: list[int],
    stop_tokens: list[int],
    pad: int,
    masks: list[list[bool]] | None = None,
) -> Rows:
    """Build `Rows` of B prompts with a recorded response each; `masks` say which of its tokens are learned, by default all."""
    tokens, prompt_mask = left_padded(prompts, pad)
    generated, mask = right_padded(responses, pad)
    if masks is not None:
        mask = mask & right_padded(masks, 0)[0].bool()
    truncated = torch.tensor([not ids or ids[-1] not in stop_tokens for ids in responses])
    return Rows(torch.cat([tokens, generated], 1), prompt_mask, mask, torch.tensor(groups), truncated)

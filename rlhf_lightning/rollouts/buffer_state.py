"""The state of a rollout buffer of all ranks, and the shard of it that a rank of any number of ranks takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlhf_lightning.distributed import all_gather, rank, world_size
from rlhf_lightning.types import NOT_PER_TOKEN

Tensors = dict[str, Tensor]
"""Tensors of rows by name; the first dimension is that of the rows."""


def gather_rows(tensors: Tensors) -> dict[str, Any]:
    """Gather the rows of all ranks in the order of their prompts; every rank must call it.

    Args:
        tensors: the rows of this rank on the CPU, with `groups`, `prompt_mask` and `mask`.

    Returns:
        `rows`: the tensors; `owners`: int64 [B], the rank that has each row; `ranks`: the number of ranks.
    """
    shards: list[Tensors] = []
    owners: list[Tensor] = []
    known = set[int]()
    for owner, shard in enumerate(all_gather(tensors)):
        prompts = set(shard["groups"].tolist())
        if not prompts <= known:  # a rank without rows repeats a prompt of rank 0, with an empty mask
            shards.append(shard)
            owners.append(torch.full_like(shard["groups"], owner))
        known |= prompts
    padded = _padded(shards)
    rows = {name: torch.cat([shard[name] for shard in padded]) for name in tensors}
    order = rows["groups"].argsort(stable=True)
    in_order = {name: value[order] for name, value in rows.items()}
    return {"rows": in_order, "owners": torch.cat(owners)[order], "ranks": world_size()}


def own_rows(state: dict[str, Any]) -> Tensors:
    """Take this rank's rows: those that it had, or every n-th prompt where the number n of ranks is another.

    A rank without a prompt takes the first one with an empty mask, so that collectives match.
    """
    rows: Tensors = state["rows"]
    prompt = torch.unique(rows["groups"], return_inverse=True)[1]
    owner = state["owners"] if state["ranks"] == world_size() else prompt % world_size()
    own = owner == rank()
    if own.any():
        return {name: value[own] for name, value in rows.items()}
    first = {name: value[prompt == 0] for name, value in rows.items()}
    return {**first, "mask": torch.zeros_like(first["mask"])}


def _padded(shards: list[Tensors]) -> list[Tensors]:
    """Pad prompts on the left and responses on the right to the longest of all shards; `places` are no tokens."""
    prompt, response = (max(shard[name].shape[1] for shard in shards) for name in ("prompt_mask", "mask"))
    return [_padded_rows(shard, prompt, response) for shard in shards]


def _padded_rows(shard: Tensors, prompt: int, response: int) -> Tensors:
    left, right = prompt - shard["prompt_mask"].shape[1], response - shard["mask"].shape[1]
    widths = dict.fromkeys((*NOT_PER_TOKEN, "places"), (0, 0)) | {"tokens": (left, right), "prompt_mask": (left, 0)}
    return {
        name: pad(value, (0, 0) * (value.dim() - 2) + widths.get(name, (0, right))) if value.dim() >= 2 else value
        for name, value in shard.items()
    }

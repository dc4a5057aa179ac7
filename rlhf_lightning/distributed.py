"""The processes that train together: sums, maxima and whatever else they tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_lightning.errors import UserError

Result = TypeVar("Result")


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks; `value` itself on a single process."""
    return _reduced(value, dist.ReduceOp.SUM)


def all_max(value: Tensor) -> Tensor:
    """The maximum of `value` over all ranks, elementwise."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return value
    shared = value.to("cuda" if dist.get_backend() == "nccl" else value.device, copy=True)
    dist.all_reduce(shared, op=operation)
    return shared.to(value.device)


def all_gather(value: Any) -> list[Any]:
    """`value` of every rank, in the order of ranks, on every rank; tensors must be on the CPU."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def share(rows: list[Any]) -> list[Any]:
    """This rank's part of a global batch: every n-th row of n ranks, so that the global batch never depends on n.

    >>> share(["a", "b"])
    ['a', 'b']
    """
    return rows[rank() :: world_size()]


def interleave_shards(parts: list[list[Any]]) -> list[Any]:
    """The global batch whose `share` on each rank is given.

    >>> interleave_shards([["a", "c"], ["b"]])
    ['a', 'b', 'c']
    """
    return [part[i] for i in range(max(map(len, parts), default=0)) for part in parts if i < len(part)]


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """The flag is up on at least one rank."""
    return bool(all_max(torch.tensor(float(flag), device=device)) > 0)


def raise_on_all_ranks(work: Callable[..., Result], *args: Any) -> Result:
    """What `work(*args)` gives, or on every rank an error if it failed on one: the others would wait for that one for ever.

    Raises:
        UserError: it failed here, or on another rank.
    """
    failure: UserError | None = None
    try:
        result = work(*args)
    except UserError as error:
        failure = error
    if any_rank(failure is not None):
        raise failure or UserError("another process of this run failed; its message says why")
    return result

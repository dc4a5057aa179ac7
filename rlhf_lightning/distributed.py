"""Communicate between the ranks of a run: sums, maxima, gathered values, shards of rows, shared errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_lightning.errors import UserError

Result = TypeVar("Result")


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(value: Tensor) -> Tensor:
    """Sum `value` over all ranks; a single process gets `value` itself."""
    return _reduced(value, dist.ReduceOp.SUM)


def all_max(value: Tensor) -> Tensor:
    """Take the elementwise maximum of `value` over all ranks."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return value
    shared = value.to("cuda" if dist.get_backend() == "nccl" else value.device, copy=True)
    dist.all_reduce(shared, op=operation)
    return shared.to(value.device)


def all_gather(value: Any) -> list[Any]:
    """Gather `value` from every rank, in rank order, on every rank; tensors must be on the CPU."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the `value` of rank 0 on every rank; tensors must be on the CPU."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def shard(rows: list[Any]) -> list[Any]:
    """Take this rank's shard of a global batch: every n-th row of n ranks, so that the global batch never depends on n.

    >>> shard(["a", "b"])
    ['a', 'b']
    """
    return rows[rank() :: world_size()]


def shard_places(count: int) -> tuple[int, ...]:
    """Return the places in the global batch of the `count` rows of this rank's shard.

    >>> shard_places(3)
    (0, 1, 2)
    """
    return tuple(rank() + place * world_size() for place in range(count))


def interleave_shards(shards: list[list[Any]]) -> list[Any]:
    """Rebuild the global batch from the `shard` of each rank.

    >>> interleave_shards([["a", "c"], ["b"]])
    ['a', 'b', 'c']
    """
    return [rows[i] for i in range(max(map(len, shards), default=0)) for rows in shards if i < len(rows)]


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Tell whether `flag` is True on at least one rank."""
    return bool(all_max(torch.tensor(float(flag), device=device)) > 0)


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise on every rank at the end of the block if the block failed on one.

    Without this the other ranks would wait for the failed one forever. The block must not communicate.

    Raises:
        UserError: the block failed on another rank.
        Exception: the block failed here.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if any_rank(failure is not None):
        raise of_all_ranks(failure or UserError("another rank of this run failed; read the message of that rank"))


def of_all_ranks(error: Exception) -> Exception:
    """Mark an error that every rank raises, or another error in its place, at the same point."""
    error.on_all_ranks = True  # type: ignore[attr-defined]
    return error


def is_of_all_ranks(error: BaseException) -> bool:
    """Tell whether every rank has failed with this one, or there is one alone: then the ranks may still communicate."""
    cause: BaseException | None = error
    while cause is not None and not getattr(cause, "on_all_ranks", False):
        cause = cause.__cause__
    return world_size() == 1 or cause is not None


def raise_on_all_ranks(work: Callable[..., Result], *args: Any) -> Result:
    """Return `work(*args)`, and raise on every rank if it failed on one; see `shared_errors`."""
    with shared_errors():
        return work(*args)
    raise AssertionError  # mypy: the block either returns or raises

"""Sharding by FSDP2: what is cut, having it whole while ranks do different things, and gathering it to be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


def shard_(module: nn.Module, mesh: Any) -> nn.Module:
    """Cut the weights over the ranks of `mesh`: every transformer block for itself, and what is left with `module`.

    Quantised weights stay whole on every rank: they are no numbers that could be cut anywhere, and they do not train.
    """
    whole = {p for p in module.parameters() if not p.is_floating_point()}
    for block in blocks(module):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(module, mesh=mesh, ignored_params=whole)
    for name in ("generate", "values", "probe_capabilities"):
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
    return module


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of every outermost `ModuleList`: the transformer's layers, and not the experts inside of them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Keep all weights on every rank, so that ranks may call the module as often as each likes; then cut them again.

    Every rank must enter and leave together. Does nothing for a module that is not sharded.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


def full_state(module: nn.Module) -> dict[str, Tensor] | None:
    """Every weight of a sharded module, whole and on the CPU of the first rank (nothing on others); None if it is not sharded.

    Every rank must ask.
    """
    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        return None
    state: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], state)

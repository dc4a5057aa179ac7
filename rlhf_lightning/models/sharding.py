"""Shard modules by FSDP2, keep them whole while ranks work independently, and gather their weights for saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


def shard_(module: nn.Module, mesh: Any) -> nn.Module:
    """Shard the weights over the ranks of `mesh`: each transformer block by itself, and the remaining weights together.

    Quantised weights stay whole on every rank, because their packed format cannot be split, and they do not train.
    """
    whole = {p for p in module.parameters() if not p.is_floating_point()}
    for block in blocks(module):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(module, mesh=mesh, ignored_params=whole)
    for name in ("values", "final_values", "probe_capabilities"):
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
    return module


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of every outermost `ModuleList`: transformer blocks, but not the experts inside them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather all weights on every rank inside the block, so that ranks may call the module independently.

    Every rank must enter and leave together. A module that is not sharded stays as it is.
    """
    shards = [submodule for submodule in module.modules() if isinstance(submodule, FSDPModule)]
    for submodule in shards:
        submodule.set_reshard_after_forward(False, recurse=False)
        submodule.unshard()
    try:
        yield
    finally:
        for submodule in shards:
            submodule.set_reshard_after_forward(submodule is not module, recurse=False)
            submodule.reshard()


def full_state(module: nn.Module) -> dict[str, Tensor] | None:
    """Gather every weight of a sharded module on the CPU of rank 0; every rank must call it.

    Returns:
        The weights by name on rank 0, an empty dictionary on other ranks, None if the module is not sharded.
    """
    if not any(isinstance(submodule, FSDPModule) for submodule in module.modules()):
        return None
    state: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, Tensor], state)

"""The network of a stage: sharding by the strategy, and evaluation between training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from rlhf_lightning.models.backbone import eval_mode
from rlhf_lightning.models.sharding import shard_, unsharded
from rlhf_lightning.training.lightning_compat import has_trainer

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def sharded_by_strategy(module: LightningModule, network: NetworkT) -> NetworkT:
    """Shard the network over the ranks where the strategy is FSDP2, and return it."""
    if has_trainer(module) and isinstance(module.trainer.strategy, ModelParallelStrategy):
        assert module.device_mesh is not None
        shard_(network, module.device_mesh["data_parallel"])
    return network


@contextmanager
def evaluation(module: LightningModule, network: Any) -> Iterator[None]:
    """Evaluate with unsharded weights, without gradients, in the precision of training; then restore all modes.

    Every rank must enter and leave together. Capabilities are probed at the start: a rank without rows would otherwise probe
    them later, alone and with sharded weights.
    """
    precision = module.trainer.precision_plugin.forward_context()
    with eval_mode(module), unsharded(network), torch.no_grad(), precision:
        network.probe_capabilities()
        yield

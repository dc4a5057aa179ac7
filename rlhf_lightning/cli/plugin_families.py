"""The kinds of classes that a config names; imports torch and Lightning."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlhf_lightning.algorithms import Algorithm
from rlhf_lightning.generation.base import Generator
from rlhf_lightning.rewards import Reward

PLUGIN_FAMILIES: tuple[type, ...] = (
    LightningModule,
    LightningDataModule,
    Algorithm,
    Reward,
    Generator,
    Callback,
    Logger,
    Optimizer,
    LRScheduler,
)


def subclasses(base: type) -> Iterator[type]:
    """Yield every class that derives from a base and is imported."""
    found: list[type] = type.__subclasses__(base)
    for subclass in found:
        yield subclass
        yield from subclasses(subclass)

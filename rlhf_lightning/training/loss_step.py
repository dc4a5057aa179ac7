"""Loss of an optimiser step: micro-batches, division by the weight of the whole step, backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.backbone import supports_packing
from rlhf_lightning.models.micro_batches import micro_batches
from rlhf_lightning.types import LossOutput, RowsT


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of an optimiser step: its input and its detached loss."""

    batch: Any
    loss: LossOutput


class LossStep:
    """Computes losses so that the gradient is the same however a step is split.

    Lightning divides each loss by the accumulation and averages gradients over ranks. `LossStep` undoes both and divides by the
    weight of the whole step, over all micro-batches and ranks.

    Args:
        module: the stage.
        max_tokens_per_batch: tokens per forward pass; None splits no batch.
    """

    def __init__(self, module: LightningModule, max_tokens_per_batch: int | None) -> None:
        self.module, self.max_tokens_per_batch = module, max_tokens_per_batch
        self.micro_batches: list[MicroBatch] = []
        """Forward passes since the last optimiser step."""

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs the stage."""
        return self.module.trainer

    @property
    def accumulate(self) -> int:
        """Batches of Lightning per optimiser step."""
        return int(self.trainer.accumulate_grad_batches)

    def backward(
        self, batch: RowsT, loss: Callable[[RowsT], LossOutput], loss_groups: Tensor, backbones: list[Any]
    ) -> Tensor:
        """Run the backward pass of every micro-batch but the last, so that the activations of one exist at a time.

        Args:
            batch: B rows with the field `weight`.
            loss: undivided loss of a micro-batch.
            loss_groups: int64 [B]; rows with the same number are never separated.
            backbones: models that read the rows; whether all of them support packing decides the size of a micro-batch.

        Returns:
            float32 []: the divided loss of the last micro-batch, whose backward pass Lightning runs.
        """
        packed = all(supports_packing(backbone) for backbone in backbones)
        *others, last = micro_batches(batch, loss_groups, self.max_tokens_per_batch, packed)
        for micro_batch in others:
            divided = self._divided(loss(micro_batch), micro_batch) / self.accumulate
            with torch.autocast(self.module.device.type, enabled=False):
                self.trainer.strategy.backward(divided, None)
        return self._divided(loss(last), last)

    def _divided(self, loss: LossOutput, batch: Any) -> Tensor:
        self.micro_batches.append(MicroBatch(batch, replace(loss, loss=loss.loss.detach())))
        return loss.loss.float() * (self.accumulate * self.trainer.world_size) / batch.weight

    def finish(self) -> tuple[list[MicroBatch], Tensor | None]:
        """End the optimiser step.

        Returns:
            Its micro-batches, and the norm of its gradient before clipping; None where nothing has a gradient.
        """
        done, self.micro_batches = self.micro_batches, []
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not done or not gradients:
            return done, None
        norm = torch.nn.utils.get_total_norm(gradients)
        return done, norm.full_tensor() if isinstance(norm, DTensor) else norm

    def reset(self) -> None:
        """Forget the micro-batches of a run that ended within a step."""
        self.micro_batches = []

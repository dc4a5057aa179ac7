"""The one buffer: a batch of rollouts on the host, served as minibatches of whole units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_sum
from rlhf_lightning.models.micro_batches import balanced_partition, select_micro_batch
from rlhf_lightning.seeding import derive_seed
from rlhf_lightning.types import Batch


class RolloutBuffer:
    """Holds one `Batch`; its order, its cursor and its tensors are its whole state.

    An epoch is a random order of the prompts, and of the units of each, cut into `minibatches` optimiser steps of as many units:
    a step computes a prompt once, so its responses stand together. Each step is cut into `accumulate` parts of about as many
    tokens. Every part knows the weight of its whole step, over all ranks, so the gradient is the same however a step is cut.
    """

    def __init__(
        self,
        batch: Batch,
        weigh: Callable[[Batch], Tensor],
        *,
        rows_per_loss_group: int,
        epochs: int,
        minibatches: int,
        accumulate: int,
        seed: int,
    ) -> None:
        self.batch, self.weigh, self.seed, self.cursor = batch.to("cpu"), weigh, seed, 0
        self.rows_per_loss_group, self.epochs, self.minibatches, self.accumulate = (
            rows_per_loss_group,
            epochs,
            minibatches,
            accumulate,
        )

    def __len__(self) -> int:
        return self.epochs * self.minibatches * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        while self.cursor < len(self):
            step, part = divmod(self.cursor, self.accumulate)
            rows, loss_groups = self._minibatch(step), torch.arange(len(self.batch)) // self.rows_per_loss_group
            minibatch = self.batch.rows(rows)
            weight = all_sum(self.weigh(minibatch).double()).float()
            local_rows = rows[balanced_partition(minibatch, loss_groups[rows], self.accumulate)[part]]
            self.cursor += 1  # before the yield: a checkpoint is written after the step
            yield replace(select_micro_batch(self.batch, local_rows, loss_groups), weight=weight.clamp(min=1))

    def step_back(self) -> None:
        """Give the optimiser step that the last part is of again."""
        self.cursor = (self.cursor - 1) // self.accumulate * self.accumulate

    def _minibatch(self, step: int) -> Tensor:
        """int64: the rows of an optimiser step, those of a unit side by side."""
        epoch, minibatch = divmod(step, self.minibatches)
        loss_groups = torch.tensor_split(self._order(epoch), self.minibatches)[minibatch]
        return (loss_groups[:, None] * self.rows_per_loss_group + torch.arange(self.rows_per_loss_group)).flatten()

    def _order(self, epoch: int) -> Tensor:
        """Units that count, those of a prompt side by side; an empty unit costs time and teaches nothing."""
        loss_groups = len(self.batch) // self.rows_per_loss_group
        counts = self.batch.mask[: loss_groups * self.rows_per_loss_group].view(loss_groups, -1).any(-1)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch) % 2**63)
        order = torch.randperm(loss_groups, generator=generator)
        prompts, prompt = torch.unique(self.batch.groups[order * self.rows_per_loss_group], return_inverse=True)
        order = order[torch.randperm(len(prompts), generator=generator)[prompt].argsort(stable=True)]
        return order[counts[order]]

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; the weight is that of a step and is not kept."""
        tensors = {name: value for name, value in self.batch.tensors().items() if name != "weight"}
        return {"tensors": tensors, "seed": self.seed, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.batch = batch_of(state["tensors"])
        self.seed, self.cursor = state["seed"], state["cursor"]


def batch_of(tensors: dict[str, Tensor]) -> Batch:
    """A batch from its tensors by name; those that are missing were None."""
    names = [item.name for item in fields(Batch) if item.name != "weight"]
    return Batch(**{name: tensors.get(name) for name in names})  # type: ignore[arg-type]

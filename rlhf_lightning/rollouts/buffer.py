"""The rollout buffer: one batch in host memory, split into minibatches and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_sum
from rlhf_lightning.models.micro_batches import balanced_partition, select_micro_batch
from rlhf_lightning.rollouts.buffer_state import gather_rows, own_rows
from rlhf_lightning.seeding import derive_seed
from rlhf_lightning.types import Batch

NEXT_MINIBATCH = 2**32
"""Distance between the places of two minibatches, beyond the number of rows of any."""


class RolloutBuffer:
    """Holds one `Batch`. Its state is that of all ranks, for any number of them: rows in global order, places and cursor.

    Each epoch shuffles the prompts, and the loss groups of each prompt, and splits them into `minibatches` optimiser
    steps. The responses to a prompt stay adjacent, so that a step computes the prompt once. Each step is split into
    `accumulate` micro-batches with about the same number of tokens. Every micro-batch has the weight of its whole step
    over all ranks, so the gradient does not depend on the split.

    Args:
        batch: rows from `Algorithm.prepare`.
        weigh: a minibatch → the denominator of its loss, `Algorithm.weight`.
        rows_per_loss_group: number of adjacent rows that share one loss.
        epochs: passes over the batch.
        minibatches: optimiser steps per pass.
        accumulate: micro-batches per optimiser step.
        seed: seed of the order.
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
        self.batch, self.weigh, self.cursor = batch.to("cpu"), weigh, 0
        self.rows_per_loss_group = rows_per_loss_group
        self.epochs, self.minibatches, self.accumulate = epochs, minibatches, accumulate
        self.places = torch.stack([self._places(derive_seed(seed, epoch)) for epoch in range(epochs)], 1)
        """int64 [B, epochs]: minibatch × 2^32 + place in the minibatch, equal within a loss group; -1 for skipped rows."""

    def __len__(self) -> int:
        return self.epochs * self.minibatches * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        while self.cursor < len(self):
            step, index = divmod(self.cursor, self.accumulate)
            rows, loss_groups = self._minibatch(step), torch.arange(len(self.batch)) // self.rows_per_loss_group
            minibatch = self.batch.rows(rows)
            weight = all_sum(self.weigh(minibatch).double()).float()
            local_rows = rows[balanced_partition(minibatch, loss_groups[rows], self.accumulate)[index]]
            self.cursor += 1  # before the yield: Lightning saves a checkpoint after the step
            yield replace(select_micro_batch(self.batch, local_rows, loss_groups), weight=weight.clamp(min=1))

    def step_back(self) -> None:
        """Move the cursor to the start of the optimiser step of the last micro-batch."""
        self.cursor = (self.cursor - 1) // self.accumulate * self.accumulate

    def _minibatch(self, step: int) -> Tensor:
        """Return int64 indices of the rows of an optimiser step; the rows of a loss group are adjacent."""
        epoch, minibatch = divmod(step, self.minibatches)
        places = self.places[:, epoch]
        rows = torch.nonzero(places // NEXT_MINIBATCH == minibatch).flatten()
        return rows[places[rows].argsort(stable=True)]

    def _places(self, seed: int) -> Tensor:
        """Return int64 [B]: the place of each row in an epoch; see `places`.

        The loss groups are shuffled, those of a prompt stay adjacent, and those whose mask is empty are skipped.
        """
        count = len(self.batch) // self.rows_per_loss_group
        nonempty_rows = self.batch.mask.any(-1)[: count * self.rows_per_loss_group]
        nonempty = nonempty_rows.view(count, self.rows_per_loss_group).any(-1)
        generator = torch.Generator().manual_seed(seed % 2**63)
        order = torch.randperm(count, generator=generator)
        prompts, prompt = torch.unique(self.batch.groups[order * self.rows_per_loss_group], return_inverse=True)
        order = order[torch.randperm(len(prompts), generator=generator)[prompt].argsort(stable=True)]
        places = torch.full((count,), -1)
        for minibatch, loss_groups in enumerate(torch.tensor_split(order[nonempty[order]], self.minibatches)):
            places[loss_groups] = minibatch * NEXT_MINIBATCH + torch.arange(len(loss_groups))
        rows = places.repeat_interleave(self.rows_per_loss_group)
        return torch.cat([rows, rows.new_full((len(self.batch) - len(rows),), -1)])

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and numbers of all ranks; the weight belongs to a step and is recomputed."""
        tensors = {name: value for name, value in self.batch.tensors().items() if name != "weight"}
        return {**gather_rows({**tensors, "places": self.places}), "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's rows of the state that `state_dict` returned, in the minibatches that they were in."""
        tensors = own_rows(state)
        self.places, self.cursor = tensors.pop("places"), state["cursor"]
        self.batch = batch_of(tensors)


def batch_of(tensors: dict[str, Tensor]) -> Batch:
    """Build a batch from its tensors by name; a missing one is None."""
    names = [item.name for item in fields(Batch) if item.name != "weight"]
    return Batch(**{name: tensors.get(name) for name in names})  # type: ignore[arg-type]

"""The one buffer: a batch of rollouts on the host, served as minibatches of whole units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.functional.ranks import all_sum
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
        rows_per_unit: int,
        epochs: int,
        minibatches: int,
        accumulate: int,
        seed: int,
    ) -> None:
        self.batch, self.weigh, self.seed, self.cursor = batch.to("cpu"), weigh, seed, 0
        self.rows_per_unit, self.epochs, self.minibatches, self.accumulate = (
            rows_per_unit,
            epochs,
            minibatches,
            accumulate,
        )

    def __len__(self) -> int:
        return self.epochs * self.minibatches * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        while self.cursor < len(self):
            step, part = divmod(self.cursor, self.accumulate)
            minibatch = self._minibatch(step)
            weight = all_sum(self.weigh(self.batch.rows(self._rows(minibatch))).double()).float()
            units = self._parts(minibatch)[part]
            self.cursor += 1  # before the yield: a checkpoint is written after the step
            yield replace(self._part(units), weight=weight.clamp(min=1))

    def _minibatch(self, step: int) -> Tensor:
        epoch, minibatch = divmod(step, self.minibatches)
        return list(torch.tensor_split(self._order(epoch), self.minibatches))[minibatch]

    def _parts(self, minibatch: Tensor) -> list[Tensor]:
        """Exactly `accumulate` pieces of about as many tokens each; some are empty where units are few.

        A part computes a prompt once, so the responses to it stay together, unless the largest part is smaller without.
        """
        first = minibatch * self.rows_per_unit
        prompts = self.batch.prompt_mask[first].sum(-1)
        responses = self.batch.mask.sum(-1)[self._rows(minibatch)].view(-1, self.rows_per_unit).sum(-1)
        choices = []
        for block in (torch.unique(self.batch.groups[first], return_inverse=True)[1], torch.arange(len(minibatch))):
            tokens = torch.zeros_like(prompts).index_copy(0, block, prompts).index_add(0, block, responses)
            dealt, largest = balanced(tokens.tolist(), self.accumulate)
            choices.append((largest, torch.tensor(dealt, dtype=torch.long)[block]))
        part = min(choices, key=lambda choice: choice[0])[1]
        return [minibatch[part == index] for index in range(self.accumulate)]

    def _order(self, epoch: int) -> Tensor:
        """Units that count, those of a prompt side by side; an empty unit costs time and teaches nothing."""
        units = len(self.batch) // self.rows_per_unit
        counts = self.batch.mask[: units * self.rows_per_unit].view(units, -1).any(-1)
        generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
        order = torch.randperm(units, generator=generator)
        prompts, prompt = torch.unique(self.batch.groups[order * self.rows_per_unit], return_inverse=True)
        order = order[torch.randperm(len(prompts), generator=generator)[prompt].argsort(stable=True)]
        return order[counts[order]]

    def _rows(self, units: Tensor) -> Tensor:
        return (units[:, None] * self.rows_per_unit + torch.arange(self.rows_per_unit)).flatten()

    def _part(self, units: Tensor) -> Batch:
        """The rows of `units`, trimmed; the first unit with an empty mask where there are none, so that ranks keep step."""
        if len(units):
            return trim(self.batch.rows(self._rows(units)))
        batch = self.batch.rows(self._rows(torch.zeros(1, dtype=torch.long)))
        return trim(replace(batch, mask=torch.zeros_like(batch.mask)))

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


def trim(batch: Batch) -> Batch:
    """Without the columns that are padding in every row: on the left of the prompts and on the right of the responses.

    At least one column of each stays.
    """
    width, kept = batch.prompt_mask.shape[1], batch.mask.any(0).long()
    first = int(batch.prompt_mask.any(0).long().argmax()) if batch.prompt_mask.any() else width - 1
    last = max(1, int((kept * torch.arange(1, len(kept) + 1)).max()))
    cut: dict[str, Any] = {}
    for name, value in batch.tensors().items():
        if value.dim() == 2 and name not in ("tokens", "prompt_mask"):
            cut[name] = value[:, :last]
    return replace(batch, tokens=batch.tokens[:, first : width + last], prompt_mask=batch.prompt_mask[:, first:], **cut)


def balanced(sizes: list[int], parts: int) -> tuple[list[int], int]:
    """Which part each goes to, the largest first, each to the part that has least (Graham 1969); and the largest part.

    >>> balanced([1, 5, 3, 3], 2)
    ([0, 0, 1, 1], 6)
    """
    totals, chosen = [0] * parts, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        chosen[index] = totals.index(min(totals))
        totals[chosen[index]] += sizes[index]
    return chosen, max(totals)

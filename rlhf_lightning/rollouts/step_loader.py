"""Loaders that Lightning can stop and resume anywhere: rows in a known order, and rollouts made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_sum, shard
from rlhf_lightning.rollouts.row_source import RowSource, local_rows, rows_of
from rlhf_lightning.types import RawRows

REPLAY_STEP = "again"
"""A mark in a loader's state: the optimiser step that its last batch is part of was not taken, and is to be given again."""


class StepLoader:
    """Recorded rows as batches that know the weight of their whole optimiser step, over all ranks; sized and resumable.

    Args:
        source: global batches of rows; `accumulate` of them in a row make an optimiser step.
        encode: rows of this rank → a batch with a field `weight`.
        weigh: what a batch counts for.
        limit: batches of an epoch, where Lightning takes fewer than there are.
        repeat: every epoch has the rows of the first.
    """

    def __init__(
        self,
        source: RowSource,
        encode: Callable[[RawRows], Any],
        weigh: Callable[[Any], Tensor],
        accumulate: int,
        limit: int | None = None,
        repeat: bool = False,
    ) -> None:
        self.source, self.encode, self.weigh, self.accumulate = source, encode, weigh, accumulate
        self.limit, self.repeat = len(source) if limit is None else limit, repeat
        self.cursor, self.step_start = 0, source.state_dict()

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Any]:
        if self.cursor >= self.limit:
            self.cursor = 0
        if self.repeat and self.cursor == 0:
            self.source.restart()
        while self.cursor < self.limit:
            skip = self.cursor % self.accumulate
            self.step_start = self.source.state_dict()
            parts = min(self.accumulate, self.limit - self.cursor + skip)
            batches = [self._batch() for _ in range(parts)]
            weight = all_sum(torch.stack([self.weigh(batch).double() for batch in batches]).sum()).float().clamp(min=1)
            for batch in batches[skip:]:
                self.cursor += 1
                yield replace(batch, weight=weight)

    def _batch(self) -> Any:
        rows, count = local_rows(self.source.next())
        batch = self.encode(rows)
        return batch if count else replace(batch, mask=torch.zeros_like(batch.mask))

    def state_dict(self) -> dict[str, Any]:
        """The rows taken, as of the first batch of a step that is not finished, and the batches given."""
        whole = self.cursor % self.accumulate == 0 or self.cursor >= self.limit
        source = self.source.state_dict() if whole else self.step_start
        return {"source": source, "cursor": self.cursor, "step_start": self.step_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there; where the step of the last batch was not taken (`REPLAY_STEP`), from that step's first."""
        again = state.get(REPLAY_STEP, False)
        self.source.load_state_dict(state["step_start"] if again else state["source"])
        self.cursor = (state["cursor"] - 1) // self.accumulate * self.accumulate if again else state["cursor"]


class ValidationLoader:
    """A validation loader that gives each rank its share of every batch, as rows."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[RawRows]:
        return (shard(rows_of(batch)) for batch in self.loader)

"""The loaders of recorded rows, which Lightning can stop and resume at any batch."""

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
"""Key in a loader's state: True if the optimiser step of its last batch was not taken, so that its batches are repeated."""


class StepLoader:
    """Yields batches of recorded rows, each with the weight of its whole optimiser step over all ranks.

    Args:
        source: global batches of rows.
        encode: rows of this rank → a batch with a field `weight`.
        weigh: a batch → its weight in the loss.
        accumulate: consecutive batches per optimiser step.
        limit: batches per epoch, where Lightning takes fewer than the source has.
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
            done = self.cursor % self.accumulate
            self.step_start = self.source.state_dict()
            count = min(self.accumulate, self.limit - self.cursor + done)
            batches = [self._batch() for _ in range(count)]
            weight = all_sum(torch.stack([self.weigh(batch).double() for batch in batches]).sum()).float().clamp(min=1)
            for batch in batches[done:]:
                self.cursor += 1
                yield replace(batch, weight=weight)

    def _batch(self) -> Any:
        rows, numbers = local_rows(self.source.next())
        batch = self.encode(rows)
        return batch if numbers else replace(batch, mask=torch.zeros_like(batch.mask))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the source at the start of an incomplete step, and the number of batches yielded."""
        complete = self.cursor % self.accumulate == 0 or self.cursor >= self.limit
        source = self.source.state_dict() if complete else self.step_start
        return {"source": source, "cursor": self.cursor, "step_start": self.step_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the last batch, or at the start of its step if that was not taken (`REPLAY_STEP`)."""
        replay = state.get(REPLAY_STEP, False)
        self.source.load_state_dict(state["step_start"] if replay else state["source"])
        self.cursor = (state["cursor"] - 1) // self.accumulate * self.accumulate if replay else state["cursor"]


class ValidationLoader:
    """Yields each rank's shard of every validation batch, as rows; `read` makes rows of a batch."""

    def __init__(self, loader: Iterable[Any], read: Callable[[Any], RawRows] = rows_of) -> None:
        self.loader, self.read = loader, read

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[RawRows]:
        return (shard(self.read(batch)) for batch in self.loader)

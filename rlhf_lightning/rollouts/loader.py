"""Loaders that Lightning can stop and resume anywhere: rows in a known order, and rollouts made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.ranks import all_sum, gathered, rank, share, world_size
from rlhf_lightning.rollouts.buffer import RolloutBuffer

RawRows = list[dict[str, Any]]
AGAIN = "again"
"""A mark in a loader's state: the optimiser step that its last batch is part of was not taken, and is to be given again."""

NO_BATCH = "the train data loader gives no batch; its batch size may be larger than its data set"
BATCH = "a batch must be a list of rows (texts, or dictionaries with a prompt or messages) or a dictionary of columns"


def rows_of(batch: Any) -> RawRows:
    """What a data loader gave, as a list of rows: rows already, plain prompts, or a dictionary of columns.

    >>> rows_of(["a", "b"])
    [{'prompt': 'a'}, {'prompt': 'b'}]
    >>> rows_of({"prompt": ["a"], "answer": [1]})
    [{'prompt': 'a', 'answer': 1}]

    Raises:
        UserError: it is something else.
    """
    rows = _columns(batch) if isinstance(batch, dict) else None if isinstance(batch, str) else batch
    if not isinstance(rows, Iterable):
        raise UserError(f"{BATCH}, found {batch!r:.100}; DataLoader(…, collate_fn=list) keeps rows as they are")
    found: RawRows = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    for row in found:
        if not isinstance(row.get("prompt", row.get("messages")), str | list):
            raise UserError(
                f"{BATCH}, found the row {row!r:.100}; DataLoader(…, collate_fn=list) keeps rows as they are"
            )
    return found


def _columns(batch: dict[str, Any]) -> RawRows | None:
    """The rows of columns; None where a value is none, as those of a single row."""
    if any(isinstance(column, str) for column in batch.values()):
        return None
    try:
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    except (TypeError, ValueError):
        return None


def mine(rows: RawRows) -> tuple[RawRows, bool]:
    """This rank's share of a global batch, and whether it counts: a rank that goes short repeats the first row for nothing."""
    own = share(rows)
    return own or rows[:1], bool(own)


class RowSource:
    """Batches of rows from any data loader, without end, in an order that depends on `seed` alone and can be continued.

    Before each pass the global random state is seeded with (seed, pass) and put back, so a plain
    `DataLoader(shuffle=True)` repeats itself; a restored source takes up the pass where it was.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed, self.passes, self.taken = loader, seed, 0, 0
        self._batches: Iterator[Any] | None = None

    def __len__(self) -> int:
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError as error:  # Lightning would ask for the next batch before the step is taken
            raise UserError(
                "the train data loader has no length: give its data set a __len__, or set model.iterations for rollouts"
            ) from error

    def next(self) -> RawRows:
        """The next global batch; a new pass begins where one ends.

        Raises:
            UserError: the loader gives nothing at all.
        """
        batch = self._advance()
        if batch is None:
            self.passes, self.taken, self._batches = self.passes + 1, 0, None
            batch = self._advance()
        if batch is None:
            raise UserError(NO_BATCH)
        return rows_of(batch)

    def _advance(self) -> Any:
        if self._batches is not None:
            batch = next(self._batches, None)
        else:
            with torch.random.fork_rng(devices=[]):
                # not torch.manual_seed, which seeds the generators of GPUs too, and those are not put back
                torch.default_generator.manual_seed(hash((self.seed, self.passes)) % 2**63)
                self._batches = iter(self.loader)
                for _ in range(self.taken + 1):  # a DataLoader draws its order with the first batch, not with iter()
                    batch = next(self._batches, None)
        self.taken += batch is not None
        return batch

    def restart(self) -> None:
        """Begin with the first row again."""
        self.load_state_dict({"passes": 0, "taken": 0})

    def state_dict(self) -> dict[str, int]:
        """Which pass, and how much of it is taken."""
        return {"passes": self.passes, "taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from there."""
        self.passes, self.taken, self._batches = state["passes"], state["taken"], None


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
        rows, count = mine(self.source.next())
        batch = self.encode(rows)
        return batch if count else replace(batch, mask=torch.zeros_like(batch.mask))

    def state_dict(self) -> dict[str, Any]:
        """The rows taken, as of the first batch of a step that is not finished, and the batches given."""
        whole = self.cursor % self.accumulate == 0 or self.cursor >= self.limit
        source = self.source.state_dict() if whole else self.step_start
        return {"source": source, "cursor": self.cursor, "step_start": self.step_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there; where the step of the last batch was not taken (`AGAIN`), from that step's first."""
        again = state.get(AGAIN, False)
        self.source.load_state_dict(state["step_start"] if again else state["source"])
        self.cursor = (state["cursor"] - 1) // self.accumulate * self.accumulate if again else state["cursor"]


class HeldOut:
    """A validation loader that gives each rank its share of every batch, as rows."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[RawRows]:
        return (share(rows_of(batch)) for batch in self.loader)


class RolloutLoader:
    """Parts of minibatches of rollouts, collected when the buffer is empty: never ahead of the step that changes the policy.

    It is sized, and its state (rows taken, buffer, cursor, generator) is part of Lightning's checkpoints.

    Args:
        source: rows to write responses to, or recorded pairs.
        collect: rows of this rank, whether they count, a generator and a seed → a full buffer.
        parts: how many parts a buffer gives.
        empty: makes a buffer without a rollout in it, to restore one into.
        iterations: rollouts of one Lightning epoch.
        seed: of the generator that sampling draws from, and of the order of minibatches.
        device: of the generator.
        limit: parts of a Lightning epoch, where Lightning takes fewer than there are.
        repeat: every epoch has the rows of the first.
    """

    def __init__(
        self,
        source: RowSource,
        collect: Callable[[RawRows, bool, torch.Generator, int], RolloutBuffer],
        empty: Callable[[], RolloutBuffer],
        parts: int,
        iterations: int,
        seed: int,
        device: torch.device | str = "cpu",
        limit: int | None = None,
        repeat: bool = False,
    ) -> None:
        self.source, self.collect, self.empty, self.parts, self.seed = source, collect, empty, parts, seed
        self.iterations = iterations
        self.limit, self.repeat = len(self) if limit is None else limit, repeat
        self.iteration = 0
        self.generator = torch.Generator(device).manual_seed(seed + 1_000_003 * rank())
        self.buffer: RolloutBuffer | None = None
        self.before: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.iterations * self.parts

    def __iter__(self) -> Iterator[Any]:
        if self.last_part:  # the step after it was taken, but Lightning had no reason to ask for more
            self.buffer, self.iteration = None, self.iteration + 1
        start = self._given // self.limit * self.limit  # of this Lightning epoch
        if self.repeat and self._given == start:
            self.source.restart()
        while self._given < start + self.limit:
            if self.buffer is None:
                self.buffer = self._collected()
            yield from self.buffer
            self.buffer, self.iteration = None, self.iteration + 1

    @property
    def _given(self) -> int:
        return self.iteration * self.parts + (0 if self.buffer is None else self.buffer.cursor)

    def _collected(self) -> RolloutBuffer:
        """The next rollout; until it is whole, the state is that before it, so that a failure loses no row."""
        self.before = self._sources()
        rows, count = mine(self.source.next())
        buffer = self.collect(rows, count, self.generator, hash((self.seed, self.iteration)))
        self.before = None
        return buffer

    def _sources(self) -> dict[str, Any]:
        return {"source": self.source.state_dict(), "generator": self.generator.get_state()}

    @property
    def collecting(self) -> bool:
        """A rollout is being collected, or its collection has failed."""
        return self.before is not None

    @property
    def last_part(self) -> bool:
        """The part that was given last is the last of its rollout."""
        return self.buffer is not None and self.buffer.cursor == self.parts

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain tensors and numbers: Lightning keeps the first rank's alone, so it holds that of all ranks."""
        sources = self.before or self._sources()
        own = {
            "generator": sources["generator"],
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
        }
        return {"source": sources["source"], "iteration": self.iteration, "ranks": gathered(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there, inside the buffer if it was not used up; at its last step if that was not taken (`AGAIN`).

        Raises:
            UserError: another number of processes wrote it.
        """
        if len(state["ranks"]) != world_size():
            raise UserError(
                f"the checkpoint was written by {len(state['ranks'])} processes and this run has {world_size()}: rollouts are "
                f"spread over the processes, so go on with trainer.devices: {len(state['ranks'])} (on one node), or start anew "
                "from the run's export"
            )
        own = state["ranks"][rank()]
        self.source.load_state_dict(state["source"])
        self.iteration = state["iteration"]
        self.generator.set_state(own["generator"].cpu())
        self.buffer = self.before = None
        if own["buffer"] is not None:
            self.buffer = self.empty()
            self.buffer.load_state_dict(own["buffer"])
            if state.get(AGAIN, False):
                self.buffer.step_back()

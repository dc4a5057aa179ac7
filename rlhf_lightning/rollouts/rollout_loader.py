"""The loader of policy optimisation, which collects rollouts and which Lightning can stop and resume at any micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.row_source import RowSource, local_rows
from rlhf_lightning.rollouts.step_loader import REPLAY_STEP
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import RawRows


class RolloutLoader:
    """Yields micro-batches of rollouts, and collects a rollout whenever the buffer is empty.

    A rollout is never collected ahead of the step that changes the policy: the loader has a length, so Lightning prefetches
    nothing. Its state (rows taken, iteration, buffer, cursor) is part of Lightning's checkpoints.

    Args:
        source: prompts, or recorded pairs.
        collect: rows of this rank, whether they count, and their random numbers → a full buffer.
        empty: makes an empty buffer, to restore a state into.
        micro_batches: micro-batches per rollout.
        iterations: rollouts per Lightning epoch.
        seed: of the random numbers of rollouts.
        limit: micro-batches per Lightning epoch, where Lightning takes fewer than the loader has.
        repeat: every epoch has the rows of the first.
    """

    def __init__(
        self,
        source: RowSource,
        collect: Callable[[RawRows, bool, Randomness], RolloutBuffer],
        empty: Callable[[], RolloutBuffer],
        micro_batches: int,
        iterations: int,
        seed: int,
        limit: int | None = None,
        repeat: bool = False,
    ) -> None:
        self.source, self.collect, self.empty = source, collect, empty
        self.micro_batches, self.iterations, self.seed = micro_batches, iterations, seed
        self.limit, self.repeat = len(self) if limit is None else limit, repeat
        self.iteration = 0
        self.buffer: RolloutBuffer | None = None
        self.state_before_rollout: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self.iterations * self.micro_batches

    def __iter__(self) -> Iterator[Any]:
        if self.at_last_micro_batch:  # its step was taken, and Lightning requested no further one
            self.buffer, self.iteration = None, self.iteration + 1
        start = self._yielded // self.limit * self.limit  # of this Lightning epoch
        if self.repeat and self._yielded == start:
            self.source.restart()
        while self._yielded < start + self.limit:
            if self.buffer is None:
                # until the rollout is complete, `state_dict` is that before it, so that a failure loses no row
                self.state_before_rollout = self.source.state_dict()
                rows, numbers = local_rows(self.source.next())
                randomness = Randomness(self.seed, self.iteration, numbers or (0,))
                self.buffer = self.collect(rows, bool(numbers), randomness)
                self.state_before_rollout = None
            yield from self.buffer
            self.buffer, self.iteration = None, self.iteration + 1

    @property
    def _yielded(self) -> int:
        return self.iteration * self.micro_batches + (0 if self.buffer is None else self.buffer.cursor)

    @property
    def collecting(self) -> bool:
        """Return whether a rollout is being collected, or its collection failed."""
        return self.state_before_rollout is not None

    @property
    def at_last_micro_batch(self) -> bool:
        """Return whether the last micro-batch that was yielded is the last of its rollout."""
        return self.buffer is not None and self.buffer.cursor == self.micro_batches

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and numbers of all ranks, for any number of ranks; every rank must call it."""
        source = self.state_before_rollout or self.source.state_dict()
        buffer = None if self.buffer is None else self.buffer.state_dict()
        return {"source": source, "iteration": self.iteration, "buffer": buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume inside the buffer if it has micro-batches left, at the start of a step that was not taken (`REPLAY_STEP`)."""
        self.source.load_state_dict(state["source"])
        self.iteration = state["iteration"]
        self.buffer = self.state_before_rollout = None
        if state["buffer"] is not None:
            self.buffer = self.empty()
            self.buffer.load_state_dict(state["buffer"])
            if state.get(REPLAY_STEP, False):
                self.buffer.step_back()

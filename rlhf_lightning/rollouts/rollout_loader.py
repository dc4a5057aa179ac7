"""Loaders that Lightning can stop and resume anywhere: rows in a known order, and rollouts made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from rlhf_lightning.distributed import all_gather, rank, world_size
from rlhf_lightning.errors import UserError
from rlhf_lightning.rollouts.buffer import RolloutBuffer
from rlhf_lightning.rollouts.row_source import RowSource, local_rows
from rlhf_lightning.rollouts.step_loader import REPLAY_STEP
from rlhf_lightning.seeding import derive_seed
from rlhf_lightning.types import RawRows


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
        if self.at_last_micro_batch:  # the step after it was taken, but Lightning had no reason to ask for more
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
        rows, count = local_rows(self.source.next())
        buffer = self.collect(rows, count, self.generator, derive_seed(self.seed, self.iteration))
        self.before = None
        return buffer

    def _sources(self) -> dict[str, Any]:
        return {"source": self.source.state_dict(), "generator": self.generator.get_state()}

    @property
    def collecting(self) -> bool:
        """A rollout is being collected, or its collection has failed."""
        return self.before is not None

    @property
    def at_last_micro_batch(self) -> bool:
        """The part that was given last is the last of its rollout."""
        return self.buffer is not None and self.buffer.cursor == self.parts

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain tensors and numbers: Lightning keeps the first rank's alone, so it holds that of all ranks."""
        sources = self.before or self._sources()
        own = {
            "generator": sources["generator"],
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
        }
        return {"source": sources["source"], "iteration": self.iteration, "ranks": all_gather(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there, inside the buffer if it was not used up; at its last step if that was not taken (`REPLAY_STEP`).

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
            if state.get(REPLAY_STEP, False):
                self.buffer.step_back()

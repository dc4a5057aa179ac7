"""Rows from any data loader, in an order that depends on the seed alone and that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from rlhf_lightning.distributed import shard, shard_places
from rlhf_lightning.errors import UserError
from rlhf_lightning.seeding import derive_seed
from rlhf_lightning.types import RawRows

NO_BATCH = "the train data loader has no batch; set its batch size to the size of its data set or less"
BATCH = "a batch must be a list of rows (texts, or dictionaries with a prompt or messages) or a dictionary of columns"


def rows_of(batch: Any, text: bool = True) -> RawRows:
    """Turn a batch of a data loader (rows, plain prompts, or a dictionary of columns) into a list of rows.

    >>> rows_of(["a", "b"])
    [{'prompt': 'a'}, {'prompt': 'b'}]
    >>> rows_of({"prompt": ["a"], "answer": [1]})
    [{'prompt': 'a', 'answer': 1}]

    Args:
        batch: of the loader.
        text: every row must have a prompt or messages.

    Raises:
        UserError: the batch is something else.
    """
    rows = _columns(batch) if isinstance(batch, dict) else None if isinstance(batch, str) else batch
    if not isinstance(rows, Iterable):
        raise UserError(f"{BATCH}, found {batch!r:.100}; DataLoader(…, collate_fn=list) keeps rows as they are")
    result: RawRows = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    for row in result if text else ():
        if not isinstance(row.get("prompt", row.get("messages")), str | list):
            raise UserError(
                f"{BATCH}, found the row {row!r:.100}; DataLoader(…, collate_fn=list) keeps rows as they are"
            )
    return result


def _columns(batch: dict[str, Any]) -> RawRows | None:
    """Turn columns into rows; None where a value is no column, as in a single row."""
    if any(isinstance(column, str) for column in batch.values()):
        return None
    try:
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    except (TypeError, ValueError):
        return None


def local_rows(rows: RawRows) -> tuple[RawRows, tuple[int, ...]]:
    """Return this rank's shard of a global batch, and the numbers of its rows in that batch.

    A rank without rows processes the first row of the batch with weight 0, so that collectives match; it has no numbers.
    """
    own = shard(rows)
    return own or rows[:1], shard_places(len(own))


class RowSource:
    """Yields batches of rows from any data loader without end, in a resumable order that depends on `seed` alone.

    Each pass starts with a global random state that is seeded with (seed, pass), and restored afterwards. So a plain
    `DataLoader(shuffle=True)` repeats its order, and a restored source resumes inside a pass. A loader with
    `state_dict` and `load_state_dict` is restored by its own state; of any other the batches already taken are read again and
    skipped.

    Args:
        loader: batches of rows.
        seed: seed of the order.
        read: a batch → its rows.
        join: consecutive batches that are joined into one (`accumulate_grad_batches` of rollouts); the last of a pass may have
            fewer.
    """

    def __init__(
        self, loader: Iterable[Any], seed: int, read: Callable[[Any], RawRows] = rows_of, join: int = 1
    ) -> None:
        self.loader, self.seed, self.read, self.join, self.passes, self.taken = loader, seed, read, join, 0, 0
        self._batches: Iterator[Any] | None = None
        self.stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
        self._initial = self._loader_state()

    def _loader_state(self) -> dict[str, Any]:
        return {"loader": self.loader.state_dict()} if self.stateful else {}  # type: ignore[attr-defined]

    def __len__(self) -> int:
        try:
            return -(-len(self.loader) // self.join)  # type: ignore[arg-type]
        except TypeError as error:  # Lightning would prefetch, ahead of the step
            raise UserError(
                "the train data loader has no length; add __len__ to its data set, or set model.iterations for rollouts"
            ) from error

    def next(self) -> RawRows:
        """Return the next global batch, joined of `join` batches; after the last one of a pass a new pass starts.

        Raises:
            UserError: the loader has no batch.
        """
        batch = self._advance()
        if batch is None:
            self._start_pass()
            batch = self._advance()
        if batch is None:
            raise UserError(NO_BATCH)
        rows = list(self.read(batch))
        for _ in range(self.join - 1):
            batch = self._advance()
            if batch is None:  # the pass ends with fewer
                self._start_pass()
                break
            rows += self.read(batch)
        return rows

    def _start_pass(self) -> None:
        self.passes, self.taken, self._batches = self.passes + 1, 0, None

    def _advance(self) -> Any:
        if self._batches is not None:
            batch = next(self._batches, None)
        else:
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed would also seed the GPUs, whose state is not restored
                torch.default_generator.manual_seed(derive_seed(self.seed, self.passes) % 2**63)
                self._batches = iter(self.loader)
                skipped = 0 if self.stateful else self.taken
                for _ in range(skipped + 1):  # a DataLoader samples its order with the first batch, not in iter()
                    batch = next(self._batches, None)
        self.taken += batch is not None
        return batch

    def restart(self) -> None:
        """Start over at the first row."""
        self.load_state_dict({"passes": 0, "taken": 0, **self._initial})

    def state_dict(self) -> dict[str, Any]:
        """Return the number of finished passes, of batches taken from the present one, and the loader's own state."""
        return {"passes": self.passes, "taken": self.taken, **self._loader_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the batches that were taken.

        Raises:
            UserError: it is the state of another kind of loader.
        """
        if self.stateful != ("loader" in state):
            raise UserError(
                "the checkpoint is of a run with another kind of train data loader; resume with the data (data.streaming, "
                "data.mix, data.steps_per_epoch) that it was started with"
            )
        if self.stateful:
            self.loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        self.passes, self.taken, self._batches = state["passes"], state["taken"], None

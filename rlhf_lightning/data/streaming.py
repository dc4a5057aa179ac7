"""Endless rows from readers, mixed by weight, in batches: resumed at the row where they stopped.

A pass reads the files of a source in an order that depends on (seed, pass), in windows of `data.shuffle_buffer` rows. The rows of
a window come in an order that depends on (seed, pass, window). The state is the cursor of the window and the rows taken of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rlhf_lightning.data.messages import BadRow
from rlhf_lightning.data.readers import Reader
from rlhf_lightning.errors import UserError
from rlhf_lightning.seeding import derive_seed

Row = dict[str, Any]
Accept = Callable[[Row, str], Sequence[Row]]
"""Makes the rows that stages read, none or several, from a raw row and its place."""


class RowStream:
    """Give the rows of one source without end.

    Args:
        readers: of the source's files.
        accept: makes the rows that stages read from a raw one.
        fault: is told of a bad row.
        window: rows that are shuffled together; 1 keeps the order of the files.
        limit: raw rows of a pass, from the beginning; None reads all.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        accept: Accept,
        fault: Callable[[str], None],
        window: int,
        limit: int | None = None,
    ) -> None:
        self.readers, self.accept, self.fault, self.size, self.limit = readers, accept, fault, window, limit
        self.seed = 0
        self.restart()

    def restart(self) -> None:
        """Start over with the first pass."""
        self.passes = 0
        self._begin_pass()

    def _begin_pass(self) -> None:
        self.file = self.number = self.taken = self.before = self.accepted = self.expanded = 0
        self.cursor: Any = None
        self._places: list[Any] | None = None
        self._after: Any = None

    def next(self) -> Row:
        """Return the next row.

        Raises:
            UserError: a whole pass has no row.
        """
        while True:
            if self._places is None:
                self._open_window()
            assert self._places is not None
            if self.taken == len(self._places):
                self._leave_window()
                continue
            rows = self._rows(self._places[self.taken])
            place, self.expanded = self.expanded, self.expanded + 1
            if self.expanded >= len(rows):
                self.taken, self.expanded = self.taken + 1, 0
            if rows:
                self.accepted += 1
                return rows[place]

    def _rows(self, place: Any) -> Sequence[Row]:
        try:
            return self.accept(*self._reader.row(place))
        except BadRow as error:
            self.fault(str(error))
            return ()

    @property
    def _reader(self) -> Reader:
        order = list(range(len(self.readers)))
        if self.limit is None and self.size > 1:
            random.Random(derive_seed(self.seed, self.passes)).shuffle(order)
        return self.readers[order[self.file]]

    def _open_window(self) -> None:
        size = self.size if self.limit is None else min(self.size, self.limit - self.before)
        reader = self._reader
        try:
            self._places, self._after = reader.window(self.cursor, size) if size > 0 else ([], None)
        except (OSError, EOFError) as error:
            raise UserError(f"data file {reader.name} cannot be read: {error}") from error
        if self.size > 1:
            random.Random(derive_seed(self.seed, self.passes, self.file, self.number)).shuffle(self._places)

    def _leave_window(self) -> None:
        """Open the next window, the next file or the next pass."""
        assert self._places is not None
        self.before += len(self._places)
        if self._places:
            self.cursor, self.number = self._after, self.number + 1
        elif self.file + 1 < len(self.readers):
            self.file, self.cursor, self.number = self.file + 1, None, 0
        else:
            if not self.accepted:
                names = ", ".join(reader.name for reader in self.readers[:3])
                raise UserError(f"data set {names} has no row to use: all of them are empty, bad or held out")
            self.passes += 1
            self._begin_pass()
        self.taken, self._places = 0, None

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the next row."""
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume there."""
        for name in STATE:
            setattr(self, name, state[name])
        self._places = None


STATE = ("seed", "passes", "file", "cursor", "number", "taken", "before", "accepted", "expanded")


class StreamLoader:
    """Give batches of rows from streams: sized, and resumed exactly through `state_dict`.

    Args:
        streams: one a source.
        weights: of the sources; after n rows each has given its portion of n, to within one row or so.
        batch_size: rows of a batch.
        batches: of an epoch.
    """

    def __init__(self, streams: Sequence[RowStream], weights: Sequence[float], batch_size: int, batches: int) -> None:
        self.streams, self.batch_size, self.batches = streams, batch_size, batches
        self.portions = [weight / sum(weights) for weight in weights]
        self.counts, self.given = [0] * len(streams), 0
        self.seed: int | None = None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Row]]:
        if self.seed is None:
            self._start(int(torch.randint(2**62, ())))
        while self.given < self.batches:
            batch = [self._next() for _ in range(self.batch_size)]
            self.given += 1
            yield batch
        self.given = 0

    def _start(self, seed: int) -> None:
        self.seed = seed
        for number, stream in enumerate(self.streams):
            stream.seed = derive_seed(seed, number)

    def _next(self) -> Row:
        total = sum(self.counts) + 1
        owed = [portion * total - count for portion, count in zip(self.portions, self.counts, strict=True)]
        source = max(range(len(owed)), key=owed.__getitem__)
        row = self.streams[source].next()
        self.counts[source] += 1
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return the place of the next row of each source, and the batches that this epoch has given."""
        states = [stream.state_dict() for stream in self.streams]
        return {"seed": self.seed, "given": self.given, "counts": list(self.counts), "streams": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume there.

        Raises:
            UserError: the state is of another number of sources.
        """
        if len(state["streams"]) != len(self.streams):
            raise UserError(
                f"the checkpoint is of a run with {len(state['streams'])} data sources and data.train has {len(self.streams)}; "
                "resume with the data.train and data.mix of that run"
            )
        self.seed, self.given, self.counts = state["seed"], state["given"], list(state["counts"])
        for stream, own in zip(self.streams, state["streams"], strict=True):
            stream.load_state_dict(own)

"""`predictions.jsonl`: the rows of `predict`; `preferences.jsonl`: the preference pairs that it made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.distributed import all_gather, interleave_shards, rank
from rlhf_lightning.io import append_json_lines, atomic_write
from rlhf_lightning.training.predictions import PreferencePairs

Counts = list[tuple[int, int]]
"""Rows of a rank in each batch, and the lines that it wrote for them."""


class Predictions(Callback):
    """Append the rows of each batch as JSON lines; several ranks write a file each, which are joined at the end."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty files."""
        suffix, self.folder = (
            f".{trainer.global_rank}" if trainer.world_size > 1 else "",
            Path(trainer.default_root_dir),
        )
        self.pairs: PreferencePairs | None = getattr(getattr(pl_module, "predictor", None), "pairs", None)
        names = ("predictions", "preferences")[: 1 if self.pairs is None else 2]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.paths = [self.folder / f"{name}{suffix}.jsonl" for name in names]
        self.counts: list[Counts] = [[] for _ in names]
        for path in self.paths:
            path.write_text("")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Append the rows of a batch."""
        contents = [outputs or [], *([] if self.pairs is None else [self.pairs.take()])]
        for path, counts, lines in zip(self.paths, self.counts, contents, strict=True):
            append_json_lines(path, lines)
            counts.append((len(batch) if hasattr(batch, "__len__") else 0, len(lines)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the files of several ranks; print the paths, and how many prompts have no pair."""
        made, skipped = (0, {}) if self.pairs is None else (self.pairs.made, dict(self.pairs.skipped))
        known = all_gather((list(map(str, self.paths)), self.counts, made, skipped))
        if rank():
            return
        joined = [self._join(place, known) for place in range(len(self.paths))] if len(known) > 1 else self.paths
        print(f"predictions: {joined[0]}", flush=True)
        if self.pairs is not None:
            total: Counter[str] = sum((Counter(each[3]) for each in known), Counter())
            said = "".join(f", {count} prompts {reason}" for reason, count in total.items())
            print(f"preferences: {joined[1]} ({sum(each[2] for each in known)} pairs{said})", flush=True)

    def _join(self, place: int, known: Sequence[Any]) -> Path:
        """Join one kind of file; where this machine lacks the files of other ranks, all stay."""
        paths = [Path(each[0][place]) for each in known]
        if not all(path.is_file() for path in paths):
            return paths[0].with_suffix("").with_suffix(".*.jsonl")
        target = paths[0].with_suffix("").with_suffix(".jsonl")
        files = [path.open("rb") for path in paths]
        try:
            lines = in_order(files, [each[1][place] for each in known])
            atomic_write(target, lambda partial: _write(partial, lines))
        finally:
            for file in files:
                file.close()
        for path in paths:
            path.unlink()
        return target


def in_order(files: Sequence[Iterator[bytes]], counts: Sequence[Counts]) -> Iterator[bytes]:
    """Yield the lines of all ranks in the order of the data: of each batch every rank has every n-th row.

    >>> list(in_order([iter([b"a", b"c", b"d"]), iter([b"b"])], [[(2, 2), (1, 1)], [(1, 1), (0, 0)]]))
    [b'a', b'b', b'c', b'd']
    """
    for batch in zip(*counts, strict=True):
        shards = []
        for file, (rows, lines) in zip(files, batch, strict=True):
            each = lines // rows if rows and lines % rows == 0 else lines
            shards.append([list(islice(file, each)) for _ in range(lines // each if each else 0)])
        for group in interleave_shards(shards):
            yield from group


def _write(path: Path, lines: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(lines)

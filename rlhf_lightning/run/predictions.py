"""`predictions.jsonl`: the rows of `predict`; `preferences.jsonl`: the preference pairs that it made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.io import append_json_lines
from rlhf_lightning.training.predictions import PreferencePairs


class Predictions(Callback):
    """Append the rows of each batch as JSON lines; with several ranks, one file per rank."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty files."""
        rank, folder = f".{trainer.global_rank}" if trainer.world_size > 1 else "", Path(trainer.default_root_dir)
        self.pairs: PreferencePairs | None = getattr(getattr(pl_module, "predictor", None), "pairs", None)
        self.path, self.pairs_path = folder / f"predictions{rank}.jsonl", folder / f"preferences{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.path, self.pairs_path)[: 1 if self.pairs is None else 2]:
            path.write_text("")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Append the rows of a batch."""
        append_json_lines(self.path, outputs or [])
        if self.pairs is not None:
            append_json_lines(self.pairs_path, self.pairs.take())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the paths of the files, and how many prompts have no pair."""
        print(f"predictions: {self.path}", flush=True)
        if self.pairs is not None:
            skipped = "".join(f", {count} prompts {reason}" for reason, count in self.pairs.skipped.items())
            print(f"preferences: {self.pairs_path} ({self.pairs.made} pairs{skipped})", flush=True)

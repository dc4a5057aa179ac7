"""`predictions.jsonl`: what `predict` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.io import append_json_lines


class Predictions(Callback):
    """Appends each batch's rows as JSON lines, one file a rank where there are several."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file anew."""
        rank = f".{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Append."""
        append_json_lines(self.path, outputs or [])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where they are."""
        print(f"predictions: {self.path}", flush=True)

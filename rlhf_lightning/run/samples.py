"""`samples.jsonl`: what the model wrote to held-out prompts at every validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Samples(Callback):
    """Appends a stage's `validation_samples` with the step they were written at."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them."""
        samples: list[dict[str, Any]] = getattr(pl_module, "validation_samples", [])
        if not trainer.is_global_zero or not samples:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "samples.jsonl", "a") as file:
            for sample in samples:
                file.write(json.dumps({"step": trainer.global_step, **sample}) + "\n")

"""`samples.jsonl`: what the model wrote to held-out prompts at every validation."""

from __future__ import annotations

import json
import os
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
        if trainer.state.fn == "fit":
            _drop_from(folder / "samples.jsonl", trainer.global_step)
        with open(folder / "samples.jsonl", "a") as file:
            for sample in samples:
                file.write(json_line({"step": trainer.global_step, **sample}))


def json_line(row: dict[str, Any]) -> str:
    """A row as a line that any JSON reader takes: a number that is not known is null."""
    known = {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}
    return json.dumps(known, default=str) + "\n"


def _drop_from(path: Path, step: int) -> None:
    """Take out what a run that was killed wrote after the checkpoint that this one goes on from."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["step"] < step]
    if len(kept) < len(lines):
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept))
        os.replace(partial, path)

"""`samples.jsonl`: what the model wrote to held-out prompts at every validation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.io import append_json_lines, atomic_write


class Samples(Callback):
    """Appends a stage's `validation_samples` with the step they were written at; a step that is measured again replaces its own.

    The file is read once, when training begins, and not at every validation.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.place = 0
        """Where the samples of `step` begin in the file, in bytes."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them."""
        samples: list[dict[str, Any]] = getattr(pl_module, "validation_samples", [])
        if not trainer.is_global_zero or not samples:
            return
        path = Path(trainer.default_root_dir) / "samples.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if trainer.state.fn == "fit":
            self._drop_from(path, trainer.global_step)
        else:
            _keep(path, lambda step: step != trainer.global_step)
        append_json_lines(path, ({"step": trainer.global_step, **sample} for sample in samples))

    def _drop_from(self, path: Path, step: int) -> None:
        """Take out what this validation repeats: the same step, or what a run that was killed wrote after its checkpoint."""
        if self.step is None:
            _keep(path, lambda earlier: earlier < step)
        elif self.step == step and path.exists():
            os.truncate(path, self.place)
        self.step, self.place = step, path.stat().st_size if path.exists() else 0


def _keep(path: Path, wanted: Callable[[int], bool]) -> None:
    """Take out the samples of other steps than those `wanted`, and a line that was cut off."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith(b"\n") and wanted(json.loads(line)["step"])]
    if len(kept) < len(lines):
        atomic_write(path, lambda partial: partial.write_bytes(b"".join(kept)))

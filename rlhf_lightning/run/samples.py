"""`samples.jsonl`: responses to held-out prompts, generated at every validation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.io import append_json_lines, atomic_write


class Samples(Callback):
    """Append the `validation_samples` of a stage with their step; a repeated step replaces its samples.

    The file is read once, when training starts.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        """Step of the last samples, also of those before a checkpoint that was loaded."""
        self.place: int | None = None
        """Offset of the samples of `step` in the file, in bytes; None until this process has written samples."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append the samples of this validation."""
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

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last samples."""
        return {"step": self.step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop the samples that came after the checkpoint, such as those of the end of a run that is extended."""
        self.step = last = checkpoint["callbacks"].get(self.state_key, {}).get("step")
        if trainer.state.fn == "fit" and trainer.is_global_zero and last is not None:
            _keep(Path(trainer.default_root_dir) / "samples.jsonl", lambda step: step <= last)

    def _drop_from(self, path: Path, step: int) -> None:
        """Drop the samples that this validation repeats: of this step, or of a killed run after its checkpoint."""
        if self.place is None:
            _keep(path, lambda earlier: earlier < step)
        elif self.step == step and path.exists():
            os.truncate(path, self.place)
        self.step, self.place = step, path.stat().st_size if path.exists() else 0


def _keep(path: Path, wanted: Callable[[int], bool]) -> None:
    """Keep the samples of the `wanted` steps; a truncated line is dropped."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith(b"\n") and wanted(json.loads(line)["step"])]
    if len(kept) < len(lines):
        atomic_write(path, lambda partial: partial.write_bytes(b"".join(kept)))

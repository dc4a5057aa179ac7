"""`export/`: the trained model in Hugging Face form."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class Export(Callback):
    """Has the stage write what it trained when training ends; every rank asks it to."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        export = getattr(pl_module, "export", None)
        if callable(export) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            export(Path(trainer.default_root_dir) / "export")

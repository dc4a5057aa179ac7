"""`export/`: the trained model in Hugging Face form."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class Export(Callback):
    """Export the trained model when training ends, on every rank."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the model."""
        export = getattr(pl_module, "export", None)
        if callable(export) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            export(Path(trainer.default_root_dir) / "export")

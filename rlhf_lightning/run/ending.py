"""The end of a run: the last validation, and what training does at its end, also where a run was killed before it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.run.checkpoints import Checkpoints
from rlhf_lightning.training.lightning_compat import stops_early, use_ending_loop, validate_within_fit

ENDING = "ending"
"""Key of a checkpoint."""


class Ending(Callback):
    """Make the end a function of the last checkpoint, so that a run that resumes there leaves the same files.

    The last checkpoint is written before the end. The end validates, unless the last step was validated already; then callbacks
    and the stage finish (averaged weights, calibration), and the model is exported. It must be the first of the callbacks.

    Args:
        stop_options: what can stop the run early, as text; where the same stopped it before the checkpoint, it is at its end.
    """

    def __init__(self, stop_options: str | None = None) -> None:
        self.stop_options = stop_options
        self.validated: int | None = None
        """Step of the last validation."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Run the end also where no step is left."""
        if stage == "fit":
            use_ending_loop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step."""
        self.validated = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint, and validate what no validation has measured yet."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.start_ending(trainer)
        if trainer.enable_validation and self.validated != trainer.global_step:
            validate_within_fit(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the step of the last validation, and by which options the run stops early here."""
        stopped = self.stop_options if stops_early(trainer) else None
        checkpoint[ENDING] = {"validated": self.validated, "stopped": stopped}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop where the run stopped, unless other options decide now when it stops."""
        ending = checkpoint.get(ENDING, {})
        self.validated = ending.get("validated")
        if ending.get("stopped") is not None and ending["stopped"] == self.stop_options:
            trainer.should_stop = True

"""Short names for strategies of Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from rlhf_lightning.run.checkpoint_integrity import plain_only, refuse_changed, seal_folder
from rlhf_lightning.training.lightning_compat import use_data_parallel_alone


class FSDP2(ModelParallelStrategy):
    """Shard weights, gradients and optimizer states over all processes (`trainer.strategy: fsdp2`); a checkpoint is one file.

    The stage shards its own network (see `models/sharding.py`). Runs on GPUs and, for tests, on CPU processes.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, **options)

    def setup_environment(self) -> None:
        """Use all processes for data parallelism, and none for tensor parallelism."""
        use_data_parallel_alone(self)
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; one of a file per process is a folder, which gets the digests of its files last."""
        super().save_checkpoint(checkpoint, filepath, storage_options)
        path = Path(self.broadcast(filepath))
        self.barrier()
        if path.is_dir() and self.is_global_zero:
            seal_folder(path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read only plain tensors and numbers, unless `--weights_only false` is set.

        Raises:
            UserError: a byte of the checkpoint is not what was saved.
        """
        refuse_changed(Path(checkpoint_path))
        with plain_only(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only is not False)


StrategyRegistry.register("fsdp2", FSDP2, "FSDP2 over all processes, checkpoints in one file")

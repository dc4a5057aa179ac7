"""Short names for strategies of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from rlhf_lightning.run.checkpoint_integrity import plain_only
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

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read only plain tensors and numbers, unless `--weights_only false` is set."""
        with plain_only(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only is not False)


StrategyRegistry.register("fsdp2", FSDP2, "FSDP2 over all processes, checkpoints in one file")

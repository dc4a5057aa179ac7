"""Strategies of Lightning under a short name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry

from rlhf_lightning.run.checkpoint_files import plain_only
from rlhf_lightning.training.lightning_compat import use_data_parallel_alone


class FSDP2(ModelParallelStrategy):
    """`trainer.strategy: fsdp2`: weights, gradients and moments cut over all processes; checkpoints are one file.

    The stage shards its own network (see `models/sharding.py`). Runs on GPUs and, for tests, on CPU processes.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint, **options)

    def setup_environment(self) -> None:
        """All processes share the weights; none of them cuts a tensor in a second direction."""
        use_data_parallel_alone(self)
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read plain tensors and numbers alone, unless the run is told otherwise."""
        with plain_only(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only is not False)


StrategyRegistry.register("fsdp2", FSDP2, "FSDP2 over all processes, checkpoints in one file")

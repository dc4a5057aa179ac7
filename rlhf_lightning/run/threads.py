"""The number of threads of a run on the CPU."""

from __future__ import annotations

import os

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.console import print_once

PARAMETERS_PER_THREAD = 1_000_000
"""Parameters of the training network for each thread; with fewer, a further thread waits longer than it computes."""


def suggested_threads(parameters: int, available: int) -> int:
    """Return how many of the `available` threads a network with so many parameters uses; at least one."""
    return max(1, min(available, parameters // PARAMETERS_PER_THREAD))


class Threads(Callback):
    """Use fewer threads for a small network, unless the user has set `OMP_NUM_THREADS`, and print how many.

    Lightning divides the cores between the processes of one machine.
    """

    def __init__(self) -> None:
        self.before: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the number of threads."""
        if trainer.strategy.root_device.type != "cpu":
            return
        self.before = available = torch.get_num_threads()
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(suggested_threads(parameters, available))
        waiting = os.environ.get("OMP_WAIT_POLICY")
        print_once(
            f"threads: {torch.get_num_threads()} of {os.cpu_count()} for {parameters / 1e6:.1f} M parameters"
            + (f", OMP_WAIT_POLICY={waiting}" if waiting else "")
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the number of threads of the process."""
        if self.before is not None:
            torch.set_num_threads(self.before)
            self.before = None

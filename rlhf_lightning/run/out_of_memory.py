"""Out-of-memory errors: the requested and the free memory, and the settings to change."""

from __future__ import annotations

import re
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w+)")
SIGNS = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error is one of memory: PyTorch has a class for CUDA, and only a text for the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


class OutOfMemory(Callback):
    """Replace the allocator's text by advice."""

    def __init__(self) -> None:
        self.batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch of the step."""
        self.batch = batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Forget the batch of the step."""
        self.batch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Replace the text of an out-of-memory error."""
        if is_out_of_memory(exception):
            limit = getattr(getattr(pl_module, "loss_step", None), "max_tokens_per_batch", None)
            found = ASKED.search(str(exception))
            asked = f" (asked for {found.group(1)})" if found else ""
            exception.args = (
                f"out of memory{asked}, {_free_memory(pl_module.device)}: {self._advice(trainer, pl_module, limit)}",
            )

    def _advice(self, trainer: Trainer, pl_module: LightningModule, limit: int | None) -> str:
        smaller = "; a smaller base: --config qlora.yaml (4 bits, an adapter trains), or gradient_checkpointing: true"
        size = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        given = "" if size is None else f", now {size}"
        if self.batch is None:
            slots = getattr(getattr(pl_module, "generation", None), "max_batch_size", None)
            fewer = "" if slots is None else f"generation.max_batch_size, now {slots}, which changes no response, or "
            return (
                f"rows were generated or measured; lower {fewer}data.batch_size{given}, generation.max_new_tokens, or the "
                f"policy's max_tokens_per_batch{smaller}"
            )
        rows, held = "rows", limit
        if hasattr(self.batch, "tokens"):
            rows = f"{len(self.batch)} rows of up to {self.batch.tokens.shape[1]} tokens"
            held = min(limit or 2**62, self.batch.tokens.numel())
        fewer = "" if held is None else f": {held // 2}"
        return (
            f"an optimiser step worked on {rows}; max_tokens_per_batch{fewer} (now {limit or 'null'}) beside the model's name "
            f"splits them into smaller micro-batches and changes no gradient; or lower data.batch_size{given}{smaller}"
        )


def _free_memory(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(device))
        return f"{free:.1f} of {total:.1f} GiB of {device} are free"
    try:
        lines = dict(line.split(":") for line in open("/proc/meminfo").read().splitlines())  # noqa: SIM115
        free, total = (int(lines[name].split()[0]) / 2**20 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError):
        return "this machine has no free memory"
    return f"{free:.1f} of {total:.1f} GiB of this machine are free"

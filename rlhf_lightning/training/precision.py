"""Which numbers are of which precision: true half precision makes weights half and nothing else, and sums are float64."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, Precision

from rlhf_lightning.errors import UserError


def check_device(device: torch.device) -> None:
    """Refuse a device on which nothing can be summed in float64, as all is that must not depend on how a step is cut.

    Raises:
        UserError: it is Apple's.
    """
    if device.type == "mps":
        raise UserError("sums are taken in float64, which Apple's MPS does not have; set trainer.accelerator: cpu")


def keep_float32(plugin: Precision) -> None:
    """Have `bf16-true` and `16-true` convert the weights alone.

    Lightning also casts every float of a batch, and makes half precision the type of new tensors. Here the floats of a batch are
    log-probabilities, values and advantages, and new tensors are rewards and the random numbers that responses are drawn with:
    256 steps of a bfloat16 between 1/2 and 1 are too few for either. Batches are also frozen, which Lightning refuses to cast.
    """
    if isinstance(plugin, HalfPrecision):
        plugin.convert_input = lambda data: data  # type: ignore[method-assign]
        plugin.forward_context = nullcontext  # type: ignore[method-assign, assignment]

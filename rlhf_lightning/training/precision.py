"""Precision: true half precision converts the weights and nothing else, and sums are float64."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, Precision

from rlhf_lightning.errors import UserError


def check_device(device: torch.device) -> None:
    """Refuse a device without float64, in which sums do not depend on how a step is split.

    Raises:
        UserError: the device is Apple's MPS.
    """
    if device.type == "mps":
        raise UserError("sums are taken in float64, which Apple's MPS does not have; set trainer.accelerator: cpu")


def keep_float32(plugin: Precision) -> None:
    """Make `bf16-true` and `16-true` convert the weights alone.

    Lightning also casts every float of a batch, and makes half precision the type of new tensors. Here a batch holds
    log-probabilities, values and advantages, and new tensors are rewards and the random numbers of sampling. A bfloat16 has 256
    values between 1/2 and 1, too few for either. Batches are also frozen, and Lightning refuses to cast frozen dataclasses.
    """
    if isinstance(plugin, HalfPrecision):
        plugin.convert_input = lambda data: data  # type: ignore[method-assign]
        plugin.forward_context = nullcontext  # type: ignore[method-assign, assignment]

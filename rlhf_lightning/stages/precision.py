"""What true half precision may make half: weights, and nothing else."""

from __future__ import annotations

from contextlib import nullcontext

from lightning.pytorch.plugins.precision import HalfPrecision, Precision


def keep_float32(plugin: Precision) -> None:
    """Have `bf16-true` and `16-true` convert the weights alone.

    Lightning also casts every float of a batch, and makes half precision the type of new tensors. Here the floats of a batch are
    log-probabilities, values and advantages, and new tensors are rewards and the random numbers that responses are drawn with:
    256 steps of a bfloat16 between 1/2 and 1 are too few for either. Batches are also frozen, which Lightning refuses to cast.
    """
    if isinstance(plugin, HalfPrecision):
        plugin.convert_input = lambda data: data  # type: ignore[method-assign]
        plugin.forward_context = nullcontext  # type: ignore[method-assign, assignment]

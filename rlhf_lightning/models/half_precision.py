"""Generate in 16 bits without casting weights or keys and values again for every token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def for_cache(states: Tensor) -> Tensor:
    """Return keys or values of the model in the dtype in which attention over a cache computes: no token casts the cache.

    On the CPU it is float32, as torch's attention takes up to three times as long in bfloat16 for one query token
    (`Float32Attention`). Elsewhere it is that of autocast, or of the model.
    """
    return states.float() if states.device.type == "cpu" else states.to(compute_dtype(states))


def keep_cache_dtype(cache: Any) -> None:
    """Pass keys and values of a cache of transformers through `for_cache`, and those of later tokens as they arrive."""
    for layer in getattr(cache, "layers", ()):
        if isinstance(getattr(layer, "keys", None), Tensor):
            layer.keys, layer.values = for_cache(layer.keys), for_cache(layer.values)
            layer.update = functools.partial(_update, layer.update)


def _update(update: Callable[..., Any], keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
    return update(for_cache(keys), for_cache(values), *args, **kwargs)


class Float32Attention(TorchFunctionMode):
    """Compute `scaled_dot_product_attention` in float32 and return its result in the dtype that it would have."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast what is not float32 yet; a cache already is."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        dtype = compute_dtype(args[0])
        with torch.autocast("cpu", enabled=False):
            output: Tensor = func(*map(_float32, args), **{name: _float32(x) for name, x in kwargs.items()})
        return output.to(dtype)


def compute_dtype(states: Tensor) -> torch.dtype:
    """Return the dtype of matrix products and attention of `states`: that of autocast, or their own."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _float32(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


@contextmanager
def generation_in_16_bits(model: nn.Module) -> Iterator[None]:
    """Generate inside the block with weights that autocast casts once, and with `Float32Attention` on the CPU.

    Autocast keeps the 16-bit copies of float32 weights until it ends, but only of weights that require gradients. So frozen
    weights, the base of a LoRA run, require them inside the block, in which no gradient is computed. In full precision nothing
    changes.
    """
    parameter = next(model.parameters())
    device = parameter.device.type
    autocast = torch.is_autocast_enabled(device)
    frozen = [x for x in model.parameters() if autocast and x.dtype == torch.float32 and not x.requires_grad]
    half = autocast or parameter.dtype in (torch.bfloat16, torch.float16)
    for x in frozen:
        x.requires_grad_(True)
    try:
        with torch.no_grad(), Float32Attention() if half and device == "cpu" else nullcontext():
            yield
    finally:
        for x in frozen:
            x.requires_grad_(False)

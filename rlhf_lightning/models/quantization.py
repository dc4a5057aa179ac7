"""Quantise weights to 4 or 8 bits with bitsandbytes; no other file imports it."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import logging
import sys
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.console import print_once
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.linear_layers import layers_unlike_linear, linear_layers

Kind = Literal["nf4", "int8"]


class _WithoutHubKernels(importlib.abc.MetaPathFinder):
    """Hides the package `kernels` while bitsandbytes is imported.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 asks the hub for a kernel at import. Its layout has no gradient, and
    `NF4Linear` does not use it.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Find bitsandbytes as Python does, and import it without `kernels`; nothing else."""
        if name != "bitsandbytes":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_alone(module: Any) -> None:
            missing = object()
            found: Any = sys.modules.get("kernels", missing)
            sys.modules["kernels"] = None  # type: ignore[assignment]
            try:
                execute(module)
            finally:
                del sys.modules["kernels"]
                if found is not missing:
                    sys.modules["kernels"] = found

        loader.exec_module = execute_alone
        return spec


if "bitsandbytes" not in sys.modules:
    sys.meta_path.insert(0, _WithoutHubKernels())

# set before peft imports bitsandbytes, which would warn of a missing optional CPU kernel
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantize_(
    model: nn.Module, kind: Kind, device: torch.device | str | None = None, experts: bool = False
) -> nn.Module:
    """Replace the linear layers of a transformers model, except heads and irreplaceable layers, by frozen quantised ones.

    nf4 is 4-bit normal floats (Dettmers et al. 2023, section 3). int8 has one scale per output (Dettmers et al. 2022).
    Activations are not quantised, so a row's log-probabilities depend neither on other rows nor on train or eval mode.
    The model is changed in place, and no weight of it trains afterwards. Quantised layers run on the CPU and on CUDA.

    Args:
        model: a model for language modelling or sequence classification.
        kind: nf4 or int8.
        device: the device of the quantised layers and of the NF4 computation; by default each layer keeps its device.
        experts: whether nf4 also quantises experts that are one tensor; only for a model that gets no adapter. Where experts
            are skipped, a line is printed.

    Returns:
        The model.

    Raises:
        UserError: the model has no linear layer that could be quantised.
    """
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}  # type: ignore[operator]
    excluded = layers_unlike_linear(model)
    layers = [(n, layer) for n, layer in linear_layers(model).items() if id(layer) not in heads and n not in excluded]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no linear layer that could be quantised to {kind}; remove quantization"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in layers:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _quantized(module, kind, device))
    _quantize_experts(model, device) if experts and kind == "nf4" else _print_skipped_experts(model, kind)
    model.requires_grad_(False)
    # peft chooses its adapter layers by these attributes
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)
    return model


def _expert_weights(model: nn.Module) -> list[tuple[str, str]]:
    """List layer path and name of every weight [experts, outputs, inputs]."""
    return [
        (path, name)
        for path, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and min(weight.shape[1:]) > 1 and "Conv" not in type(module).__name__
    ]


def _quantize_experts(model: nn.Module, device: torch.device | str | None) -> None:
    """Quantise experts to NF4 as a parametrisation, which dequantises one layer at a time."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for path, name in _expert_weights(model):
        layer = model.get_submodule(path)
        weight = getattr(layer, name)
        setattr(layer, name, nn.Parameter(weight.detach().to(device or weight.device), requires_grad=False))
        replace_parameter_4bit(layer, name, quant_type="nf4")


def _print_skipped_experts(model: nn.Module, kind: Kind) -> None:
    skipped = [model.get_submodule(path).get_parameter(name) for path, name in _expert_weights(model)]
    if skipped:
        size = sum(weight.numel() * weight.element_size() for weight in skipped) / 2**30
        print_once(f"{kind}: the experts of {type(model).__name__} stay in {skipped[0].dtype}, {size:.2g} GiB")


def dequantize_(model: nn.Module) -> nn.Module:
    """Replace quantised layers by the architecture's own in place; the rounding remains."""
    from transformers.pytorch_utils import Conv1D

    nf4, int8 = _layers()
    for name, module in list(model.named_modules()):
        if isinstance(module, nf4 | int8):
            parent, _, leaf = name.rpartition(".")
            weight, transposed = _dequantized_weight(module), bool(module.transposed)
            outputs, inputs = weight.shape
            plain: Any = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs, module.bias is not None)
            plain.weight = nn.Parameter(weight.T.contiguous() if transposed else weight)
            plain.bias = None if module.bias is None else nn.Parameter(module.bias.data)
            setattr(model.get_submodule(parent), leaf, plain)
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False  # type: ignore[assignment]
    return model


def _quantized(module: Any, kind: Kind, device: torch.device | str | None) -> nn.Module:
    """Build the quantised layer that replaces `module`."""
    import bitsandbytes as bnb

    nf4, int8 = _layers()
    # GPT-2's Conv1D keeps its weight transposed
    transposed = not isinstance(module, nn.Linear)
    weight = module.weight.data.T.contiguous() if transposed else module.weight.data
    outputs, inputs = weight.shape
    bias = module.bias is not None
    target = torch.device(device) if device is not None else weight.device
    layer: Any
    if kind == "nf4":
        layer = nf4(inputs, outputs, bias=bias, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    else:
        layer = int8(inputs, outputs, bias=bias, has_fp16_weights=False, device="meta")
        # bitsandbytes quantises to int8 only when a weight leaves the CPU
        layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    if bias:
        layer.bias = nn.Parameter(module.bias.data, requires_grad=False)
    layer.transposed, layer.original_dtype = transposed, weight.dtype
    return layer.to(target).train(module.training)


def _dequantized_weight(layer: Any) -> Tensor:
    """Return the weight [outputs, inputs] in the dtype before quantisation."""
    import bitsandbytes as bnb

    nf4, _ = _layers()
    if isinstance(layer, nf4):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.original_dtype)
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return (layer.weight.data.to(torch.float32) * scale[:, None] / 127.0).to(layer.original_dtype)


@functools.cache
def _layers() -> tuple[Any, Any]:
    """Define the quantised layers: bitsandbytes' own, with the same numbers in training and evaluation."""
    import bitsandbytes as bnb
    from bitsandbytes.autograd._functions import MatMul8bitFp

    class NF4Linear(bnb.nn.Linear4bit):
        """Hold 4-bit weights in the layout that has a gradient."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            # otherwise the first pass in eval mode repacks the weights for bfloat16 on CPUs with AVX512-BF16; that layout
            # is less exact, has no gradient, and fails where the block size does not divide the layer's inputs
            self.support_avx512bf16_for_cpu = False

    class Int8Linear(bnb.nn.Linear8bitLt):
        """Hold 8-bit weights for 16- or 32-bit activations."""

        def forward(self, x: Tensor) -> Tensor:
            # bitsandbytes would also quantise activations, on CPUs in eval mode only, and depending on other rows' outliers
            weight: Any = self.weight
            if weight.CB is not None:
                self.init_8bit_state()
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return MatMul8bitFp.apply(x, self.weight, None, bias, self.state)

        def _save_to_state_dict(self, *args: Any) -> None:
            # bitsandbytes would save scales under a name without an attribute, which torch looks up when it shards weights
            nn.Linear._save_to_state_dict(self, *args)

    return NF4Linear, Int8Linear

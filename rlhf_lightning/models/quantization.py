"""Weights in 4 or 8 bits, by bitsandbytes: the only file that imports it."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import UserError
from rlhf_lightning.models.linear_layers import layers_unlike_linear, linear_layers

Kind = Literal["nf4", "int8"]

# before peft imports it: an optional CPU kernel that is missing is not the user's affair
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantize_(
    model: nn.Module, kind: Kind, device: torch.device | str | None = None, experts: bool = False
) -> nn.Module:
    """Replace the linear layers of a transformers model, but its heads and those it reads itself, by frozen quantised ones.

    nf4: 4-bit normal floats (Dettmers et al. 2023, section 3); int8: one scale per output (the weights of Dettmers et al.
    2022). Activations stay as they are, so that a row's log-probabilities depend neither on the rows beside it nor on
    train or eval mode. In place; nothing of the model trains afterwards. Runs on the CPU and on CUDA.

    Args:
        model: a model for language modelling or sequence classification.
        kind: nf4 or int8.
        device: where the quantised layers go, and where NF4 is computed; by default each stays where it is.
        experts: also the experts of a layer that are one tensor, which no layer stands for: with nf4, and in a model on which
            no adapter will lie. A line says so where they are left as they are.

    Raises:
        UserError: the model has no linear layer to quantise.
    """
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}  # type: ignore[operator]
    others = layers_unlike_linear(model)
    layers = [(n, module) for n, module in linear_layers(model).items() if id(module) not in heads and n not in others]
    if not layers:
        raise UserError(f"{type(model).__name__} has no linear layer that could be quantised to {kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in layers:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _quantized(module, kind, device))
    _quantize_experts(model, device) if experts and kind == "nf4" else _say_left(model, kind)
    model.requires_grad_(False)
    # what peft looks at to choose its layers
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)
    return model


def _expert_weights(model: nn.Module) -> list[tuple[str, str]]:
    """Layer and name of every weight [experts, outputs, inputs]."""
    return [
        (path, name)
        for path, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and min(weight.shape[1:]) > 1 and "Conv" not in type(module).__name__
    ]


def _quantize_experts(model: nn.Module, device: torch.device | str | None) -> None:
    """In NF4, read as numbers again a layer at a time."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for path, name in _expert_weights(model):
        layer = model.get_submodule(path)
        weight = getattr(layer, name)
        setattr(layer, name, nn.Parameter(weight.detach().to(device or weight.device), requires_grad=False))
        replace_parameter_4bit(layer, name, quant_type="nf4")


def _say_left(model: nn.Module, kind: Kind) -> None:
    left = [model.get_submodule(path).get_parameter(name) for path, name in _expert_weights(model)]
    if left and rank() == 0:
        size = sum(weight.numel() * weight.element_size() for weight in left) / 2**30
        print(f"{kind}: the experts of {type(model).__name__} stay in {left[0].dtype}, {size:.2g} GiB", flush=True)


def dequantize_(model: nn.Module) -> nn.Module:
    """Undo `quantize_` in place, but for the rounding: the layers are of the kinds that the architecture has again."""
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
        # on its way from the CPU, and only there, bitsandbytes quantises int8
        layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    if bias:
        layer.bias = nn.Parameter(module.bias.data, requires_grad=False)
    layer.transposed, layer.original_dtype = transposed, weight.dtype
    return layer.to(target).train(module.training)


def _dequantized_weight(layer: Any) -> Tensor:
    """[outputs, inputs] in the type that the layer had before."""
    import bitsandbytes as bnb

    nf4, _ = _layers()
    if isinstance(layer, nf4):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.original_dtype)
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return (layer.weight.data.to(torch.float32) * scale[:, None] / 127.0).to(layer.original_dtype)


@functools.cache
def _layers() -> tuple[Any, Any]:
    """The classes of quantised layers: bitsandbytes' own, whose numbers are the same in training and evaluation."""
    import bitsandbytes as bnb
    from bitsandbytes.autograd._functions import MatMul8bitFp

    class NF4Linear(bnb.nn.Linear4bit):
        """4-bit weights, which stay in the layout that has a gradient."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            # else the first pass in eval mode repacks the weights for bfloat16 on CPUs that have AVX512-BF16: less exact,
            # without a gradient, and an error where the block size does not divide the layer's inputs
            self.support_avx512bf16_for_cpu = False

    class Int8Linear(bnb.nn.Linear8bitLt):
        """8-bit weights, 16- or 32-bit activations."""

        def forward(self, x: Tensor) -> Tensor:
            # bitsandbytes would quantise activations too: on CPUs in eval mode only, and beside outliers of other rows
            weight: Any = self.weight
            if weight.CB is not None:
                self.init_8bit_state()
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return MatMul8bitFp.apply(x, self.weight, None, bias, self.state)

        def _save_to_state_dict(self, *args: Any) -> None:
            # without bitsandbytes' scales under a name that no attribute has, which torch looks for where weights are cut
            nn.Linear._save_to_state_dict(self, *args)

    return NF4Linear, Int8Linear

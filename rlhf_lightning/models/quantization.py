"""Weights in 4 or 8 bits, by bitsandbytes: the only file that imports it."""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import torch
from torch import nn

from rlhf_lightning.errors import UserError

Kind = Literal["nf4", "int8"]


def quantize_(model: nn.Module, kind: Kind) -> nn.Module:
    """Replace the linear layers of a transformers model, but its heads, by frozen quantised ones, in place.

    nf4: 4-bit normal floats (Dettmers et al. 2023, section 3); int8: LLM.int8() (Dettmers et al. 2022). Nothing of the
    model trains afterwards. Runs on the CPU and on CUDA.

    Raises:
        UserError: the model has no linear layer to quantise.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # an optional CPU kernel that is missing is not the user's affair
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}  # type: ignore[operator]
    layers = [(name, module) for name, module in model.named_modules() if _is_linear(module) and id(module) not in heads]
    if not layers:
        raise UserError(f"{type(model).__name__} has no linear layer that could be quantised to {kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, module in layers:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _quantized(module, kind))
    model.requires_grad_(False)
    # what peft looks at to choose its layers
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)
    return model


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _quantized(module: Any, kind: Kind) -> nn.Module:
    import bitsandbytes as bnb

    # GPT-2's Conv1D keeps its weight transposed
    weight = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T.contiguous()
    outputs, inputs = weight.shape
    bias = module.bias is not None
    if kind == "nf4":
        layer = bnb.nn.Linear4bit(inputs, outputs, bias=bias, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        # its kernel for some CPUs computes in bfloat16, repacks the weights at the first eval pass and wants multiples of 32
        layer.support_avx512bf16_for_cpu = False
    else:
        layer = bnb.nn.Linear8bitLt(inputs, outputs, bias=bias, has_fp16_weights=False, threshold=6.0, device="meta")
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if bias:
        layer.bias = nn.Parameter(module.bias.data, requires_grad=False)
    return layer.to(weight.device if weight.device.type != "meta" else torch.device("cpu"))

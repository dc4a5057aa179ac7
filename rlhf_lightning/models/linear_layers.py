"""Find the linear layers that a quantised layer or an adapter can replace."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.backbone import backbone_of, eval_mode


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Return every linear layer by name, including GPT-2's, which store their weights transposed."""
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


@torch.no_grad()
def layers_unlike_linear(model: Any) -> list[str]:
    """Name the linear layers that no other layer can replace, by a short forward pass over text.

    Routers may return more than a linear layer does (PhiMoE, Llama 4). Mamba reads weights without calling their layers. Text
    never reaches the layers that read images. One expert or block decides for all of its kind, as few experts are called.
    """
    layers, replaceable = linear_layers(model), set()

    def observer(name: str, layer: Any) -> Any:
        def observe(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.nf
            if isinstance(output, Tensor) and inputs and output.shape == (*inputs[0].shape[:-1], outputs):
                replaceable.add(_kind(name))

        return observe

    handles = [layer.register_forward_hook(observer(name, layer)) for name, layer in layers.items()]
    tokens = torch.arange(8, device=next(model.parameters()).device)[None]
    try:
        with eval_mode(model):
            backbone_of(model)(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}
    return [name for name, layer in layers.items() if _kind(name) not in replaceable and id(layer) not in heads]


def _kind(name: str) -> str:
    """Replace the numbers of blocks and experts by `*`."""
    return re.sub(r"\d+", "*", name)

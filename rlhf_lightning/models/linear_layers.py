"""Which layers of a model another linear layer can stand in for: a quantised one, or one with an adapter."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.backbone import eval_mode


def linear_layers(model: nn.Module) -> dict[str, Any]:
    """Every linear layer by its name; GPT-2's, which keep their weights transposed, too."""
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


@torch.no_grad()
def layers_unlike_linear(model: Any) -> list[str]:
    """The names of linear layers that another could not stand in for, as a short pass over text shows.

    Routers may return more than a linear layer does (PhiMoE, Llama 4), Mamba reads weights without asking their layers, and no
    text reaches what reads images. Of the experts of a layer, and of the layers, one speaks for all: few of them are asked.
    """
    layers, alike = linear_layers(model), set()

    def note(name: str, layer: Any) -> Any:
        def look(_: nn.Module, given: tuple[Any, ...], found: Any) -> None:
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.nf
            if isinstance(found, Tensor) and given and found.shape == (*given[0].shape[:-1], outputs):
                alike.add(_kind(name))

        return look

    handles = [layer.register_forward_hook(note(name, layer)) for name, layer in layers.items()]
    tokens = torch.arange(8, device=next(model.parameters()).device)[None]
    try:
        with eval_mode(model):
            model.base_model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}
    return [name for name, layer in layers.items() if _kind(name) not in alike and id(layer) not in heads]


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)

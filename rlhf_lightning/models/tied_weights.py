"""Separate a head from the embedding that it shares its weight with, where an adapter changes one of them alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlhf_lightning.console import print_first_time


def separate_tied_weights(model: Any) -> None:
    """Give the head of the base a weight of its own if an adapter changes the embedding, the head, or each by itself.

    Merged into one shared weight, an adapter on the head would change the embedding too, and the reverse. The base is then
    no longer the model of its folder: its config has no `name_or_path`, and an export saves the base with the adapter.

    Args:
        model: a peft model with all of its adapters.
    """
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    wrapped = [layer for layer in (embedding, head) if layer is not None and original(layer) is not layer]
    if head is None or not wrapped or original(head).weight is not original(embedding).weight:
        return
    if len(wrapped) == 2 and _change_together(embedding, head):
        return
    weight = original(head).weight
    original(head).weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False
    base.config.name_or_path = ""
    for module in base.modules():  # transformers would tie the two again, or save one of them
        if getattr(module, "all_tied_weights_keys", None):
            module.all_tied_weights_keys = {}
    print_first_time(
        f"the adapter changes {' and '.join(_name(base, layer) for layer in wrapped)}, and the model has one weight for "
        "embedding and head; they are separated, and an export has the base in base/"
    )


def tie_whole_layers(model: Any) -> None:
    """Tie the copies of embedding and head that train whole, where the adapters say so; peft 0.21 does not when it loads them."""
    from peft.utils.other import ModulesToSaveWrapper

    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not isinstance(embedding, ModulesToSaveWrapper) or not isinstance(head, ModulesToSaveWrapper):
        return
    if not getattr(model.peft_config["default"], "ensure_weight_tying", False):
        return
    for name, copied in embedding.modules_to_save.items():
        if name not in head.modules_to_save:
            head.update(name, tied_module=copied)
        head.modules_to_save[name].weight = copied.weight


def original(layer: Any) -> Any:
    """Return the layer of the base inside one that peft wraps, or the layer itself."""
    while True:
        inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else getattr(layer, "original_module", layer)
        if inner is layer:
            return layer
        layer = inner


def _change_together(embedding: Any, head: Any) -> bool:
    """Tell whether peft keeps the changed weights of both equal: copies that train whole, or single tokens."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(embedding, ModulesToSaveWrapper) and isinstance(head, ModulesToSaveWrapper):
        copies = [layer.modules_to_save["default"].weight for layer in (embedding, head)]
        return copies[0] is copies[1]
    if isinstance(embedding, TrainableTokensWrapper) and isinstance(head, TrainableTokensWrapper):
        return head.token_adapter.tied_adapter is embedding.token_adapter
    return False


def _name(base: nn.Module, layer: nn.Module) -> str:
    return next(path.rpartition(".")[-1] for path, module in base.named_modules() if module is layer)

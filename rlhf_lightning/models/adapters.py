"""LoRA adapters by peft: attaching, continuing, and looking past them for the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from rlhf_lightning.models.loading import ModelConfig

REFERENCE = "reference"
"""Name of the frozen copy of an adapter that was trained before this run began."""


def with_adapter(model: Any, config: ModelConfig, folder: str | None, task: str) -> Any:
    """A peft model: a new adapter as `config.lora` says, or the one in `folder`, of which a frozen copy stays the reference."""
    from peft import LoraConfig, PeftModel, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if folder is not None:
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
            adapted.load_adapter(folder, adapter_name=REFERENCE, is_trainable=False)
            return adapted
        assert config.lora is not None
        options = LoraConfig(
            r=config.lora.r,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=config.lora.target_modules,
            use_rslora=config.lora.rslora,
            task_type=task,
        )
        return get_peft_model(model, options)


@contextmanager
def reference_view(model: nn.Module) -> Iterator[None]:
    """Run the base alone, or with the adapter that the run began with; nothing's `requires_grad` changes.

    peft's own switches (`disable_adapter`, `set_adapter`) also freeze and unfreeze weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    trained_before = REFERENCE in model.peft_config  # type: ignore[operator]
    try:
        for layer in layers:
            if trained_before:
                layer._active_adapter = [REFERENCE]
            else:
                layer._disable_adapters = True
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def is_adapted(model: nn.Module) -> bool:
    """The model carries an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")

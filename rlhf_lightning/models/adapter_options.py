"""Compare `lora` with the options of an adapter whose training continues."""

from __future__ import annotations

import copy
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.models.linear_layers import layers_unlike_linear

HEADS = {"score", "classifier"}
"""Layers that peft saves with the adapter of every classifier."""


def check_adapter_options(config: ModelConfig, folder: str) -> None:
    """Refuse a `lora` whose numbers differ from those of the adapter in `folder`; no weight is loaded.

    Raises:
        UserError: naming the first that differs.
    """
    if config.lora is None:
        return
    from peft import PeftConfig

    options: Any = PeftConfig.from_pretrained(folder)
    kind = str(getattr(options.peft_type, "value", options.peft_type))
    if kind != "LORA":
        raise UserError(f"lora is set, and the adapter {folder} is of the kind {kind}; remove lora")
    theirs = {"r": options.r, "alpha": options.lora_alpha, "rslora": options.use_rslora}
    for name, found in theirs.items():
        if (own := getattr(config.lora, name)) != found:
            raise UserError(_differs(name, own, folder, found))


def check_adapted_layers(model: Any, options: Any, saved: list[str], config: ModelConfig, folder: str) -> None:
    """Refuse a `lora` that names other layers than the adapter in `folder` has.

    Args:
        model: without the adapter.
        options: peft's, of the adapter.
        saved: the layers that `lora` trains whole.
        config: of the model.
        folder: for the message.

    Raises:
        UserError: naming the option.
    """
    if config.lora is None:
        return
    their_saved = {name.rpartition(".")[-1] for name in options.modules_to_save or ()} - HEADS
    tied = set(saved) - set(config.lora.modules_to_save)  # peft may leave the head of a tied embedding out of its list
    if set(saved) - HEADS - tied != their_saved - tied:
        raise UserError(_differs("modules_to_save", config.lora.modules_to_save, folder, sorted(their_saved)))
    if _layers(model, options) != _layers(model, _named_layers(model, options, config.lora.target_modules)):
        names = options.target_modules
        found = sorted(names) if isinstance(names, set | list) else names
        raise UserError(_differs("target_modules", config.lora.target_modules, folder, found))


def _named_layers(model: Any, options: Any, names: str | list[str]) -> Any:
    """Return peft's options with the layers `names`; all linear ones are listed."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    own = copy.copy(options)
    own.target_modules = names if isinstance(names, str) else set(names)
    own.exclude_modules = (layers_unlike_linear(model) or None) if names == "all-linear" else None
    return _maybe_include_all_linear_layers(own, model)


def _layers(model: Any, options: Any) -> set[str]:
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    matches = {name: check_target_module_exists(options, name) for name, _ in model.named_modules()}
    return {name for name, match in matches.items() if match and not isinstance(match, _ExcludedModule)}


def _differs(name: str, own: Any, folder: str, found: Any) -> str:
    return (
        f"lora.{name} is {own}, and the adapter {folder}, whose training continues, has {found}; set it to {found}, or remove "
        "lora"
    )

"""Attach LoRA adapters of peft, resume them, and disable them for the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.models.adapter_options import check_adapted_layers
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.models.linear_layers import layers_unlike_linear
from rlhf_lightning.models.paths import one_line
from rlhf_lightning.models.tied_weights import separate_tied_weights, tie_whole_layers
from rlhf_lightning.seeding import seeded

REFERENCE = "reference"
"""Name of the frozen copy of an adapter that was trained before this run began."""


def with_adapter(model: Any, config: ModelConfig, folder: str | None, task: str) -> Any:
    """Attach a new adapter as `config.lora` says, or the adapter in `folder`, of which a frozen copy is the reference.

    Args:
        model: a transformers model, perhaps quantised.
        config: rank, scale, layers and seed of a new adapter.
        folder: an adapter from an earlier run, whose training continues; None for a new one.
        task: peft's task type, CAUSAL_LM or SEQ_CLS; only a language model gets a reference.

    Returns:
        A peft model.

    Raises:
        UserError: the adapter does not fit the model, or cannot be trained further.
    """
    with seeded(config.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on GPT-2's layers, and deprecated names of transformers
        adapted = _new_adapter(model, config, task) if folder is None else _continued(model, config, folder, task)
        separate_tied_weights(adapted)
        return adapted


def _continued(model: Any, config: ModelConfig, folder: str, task: str) -> Any:
    """Attach the adapter in `folder`; its dropout is that of `config.lora`, or 0."""
    from peft import PeftConfig, PeftModel

    saved = _saved_modules(model, config)
    check_adapted_layers(model, PeftConfig.from_pretrained(folder), saved, config, folder)
    try:
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
        if task == "CAUSAL_LM":
            adapted.load_adapter(folder, adapter_name=REFERENCE, is_trainable=False)
    except (ValueError, RuntimeError) as error:  # virtual tokens, biases, weights of another size
        raise UserError(
            f"the adapter {folder} cannot be trained further: {one_line(error)}; set name_or_path to another model"
        ) from error
    if getattr(adapted.peft_config["default"], "target_modules_to_tie", None):
        raise UserError(
            f"the adapter {folder} shares its weights between embedding and head (ensure_weight_tying with target_modules), "
            "which cannot be merged; set name_or_path to another model"
        )
    tie_whole_layers(adapted)
    without_dropout(adapted, ("default", REFERENCE))
    if config.lora is not None and config.lora.dropout:
        for name, module in adapted.named_modules():
            if name.endswith("lora_dropout") and "default" in module:
                module["default"] = nn.Dropout(config.lora.dropout)
    return adapted


def _new_adapter(model: Any, config: ModelConfig, task: str) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    excluded = layers_unlike_linear(model) if config.lora.target_modules == "all-linear" else []
    options = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        exclude_modules=excluded or None,
        use_rslora=config.lora.rslora,
        task_type=task,
        modules_to_save=_saved_modules(model, config) or None,
        ensure_weight_tying=_ties_saved_modules(model, config),
    )
    _check_saved_modules(model, config)
    try:
        return get_peft_model(model, options)
    except ValueError as error:
        raise UserError(
            f"lora.target_modules is {config.lora.target_modules}, which peft refuses: {error}; set it to layers of the model"
        ) from error


def _ties_saved_modules(model: Any, config: ModelConfig) -> bool:
    """A head that is tied to the embedding has to stay so when the embedding trains whole."""
    saved = config.lora.modules_to_save if config.lora else []
    return bool(saved and getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _check_saved_modules(model: Any, config: ModelConfig) -> None:
    """Refuse names that no layer has, and new tokens whose embedding would not train.

    Raises:
        UserError: naming the layer.
    """
    assert config.lora is not None
    saved = config.lora.modules_to_save
    names = _names(model)
    for name in saved:
        if name not in names:
            own = [key for key, module in names.items() if isinstance(module, nn.Embedding | nn.Linear)]
            raise UserError(
                f"lora.modules_to_save names {name!r}, which is no layer of the model; {nearest(name, own)}"
            )
    wanted = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for kind, layer in wanted.items() if config.new_tokens else ():
        found = next((key for key, module in names.items() if module is layer), None)
        if found is not None and found not in _saved_modules(model, config):
            raise UserError(
                f"new_tokens adds {config.new_tokens[0]!r}, and the model's {kind} {found!r} does not train; add {found} to "
                "lora.modules_to_save"
            )


def _names(model: Any) -> dict[str, nn.Module]:
    return {path.rpartition(".")[-1]: module for path, module in model.named_modules()}


def _saved_modules(model: Any, config: ModelConfig) -> list[str]:
    """The modules that train whole, in a list that peft may change; a tied head goes with its embedding."""
    saved = list(config.lora.modules_to_save) if config.lora else []
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = [name for layer in layers for name, module in _names(model).items() if module is layer]
    if _ties_saved_modules(model, config) and set(tied) & set(saved):
        saved += [name for name in tied if name not in saved]
    return saved


@contextmanager
def adapter_view(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Run the base with the adapters `names`, or with none; no `requires_grad` changes.

    peft's own methods (`disable_adapter`, `set_adapter`) also freeze and unfreeze weights.
    """
    layers = _layers(model)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = list(names) or layer._active_adapter
            layer._disable_adapters = not names
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def reference_view(model: nn.Module) -> AbstractContextManager[None]:
    """Run the base alone, or with the adapter that the run started from."""
    return adapter_view(model, [REFERENCE] if REFERENCE in model.peft_config else [])  # type: ignore[operator]


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


@contextmanager
def adding_adapter(model: nn.Module, trains: bool) -> Iterator[None]:
    """Set `requires_grad` of weights added inside the block to `trains`, and restore it for the others, which peft changes."""
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on GPT-2's layers, and deprecated names of transformers
        yield
    for parameter in model.parameters():
        parameter.requires_grad_(before.get(id(parameter), trains))


def without_dropout(model: nn.Module, names: Iterable[str]) -> None:
    """Set the dropout of the adapters `names` to 0."""
    for path, module in model.named_modules():
        if "lora_dropout" in path and isinstance(module, nn.Dropout) and path.rpartition(".")[-1] in names:
            module.p = 0.0


def current_adapter_view(model: nn.Module) -> AbstractContextManager[None]:
    """Return a view of the currently active adapters, for a later recomputation in the backward pass."""
    layer = _layers(model)[0]
    return adapter_view(model, [] if layer._disable_adapters else layer.active_adapters)


def is_adapted(model: nn.Module) -> bool:
    """Tell whether the model has an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")

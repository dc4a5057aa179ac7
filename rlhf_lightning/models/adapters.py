"""LoRA adapters by peft: attaching, continuing, and looking past them for the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.models.linear_layers import layers_unlike_linear
from rlhf_lightning.models.paths import one_line
from rlhf_lightning.seeding import seeded

if TYPE_CHECKING:
    from rlhf_lightning.models.loading import ModelConfig

REFERENCE = "reference"
"""Name of the frozen copy of an adapter that was trained before this run began."""


def with_adapter(model: Any, config: ModelConfig, folder: str | None, task: str) -> Any:
    """A peft model: a new adapter as `config.lora` says, or the one in `folder`, of which a frozen copy stays the reference.

    Args:
        model: a transformers model, perhaps quantised.
        config: says rank, scale, layers and the seed of a new adapter.
        folder: holds an adapter that was trained before, which goes on training.
        task: peft's task type, CAUSAL_LM or SEQ_CLS; a language model alone is ever a reference.

    Raises:
        UserError: the adapter does not fit the model, or cannot go on training.
    """
    from peft import PeftModel

    with seeded(config.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on GPT-2's layers, and names of transformers that are to go
        if folder is None:
            return _new_adapter(model, config, task)
        try:
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
            if task == "CAUSAL_LM":
                adapted.load_adapter(folder, adapter_name=REFERENCE, is_trainable=False)
        except (ValueError, RuntimeError) as error:  # virtual tokens, biases, weights of another size
            raise UserError(f"the adapter {folder} cannot go on training: {one_line(error)}") from error
        without_dropout(adapted, ("default", REFERENCE))
        return adapted


def _new_adapter(model: Any, config: ModelConfig, task: str) -> Any:
    from peft import LoraConfig, get_peft_model

    assert config.lora is not None
    others = layers_unlike_linear(model) if config.lora.target_modules == "all-linear" else []
    options = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        exclude_modules=others or None,
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
            f"no adapter goes on the model with lora.target_modules {config.lora.target_modules}: {error}"
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
    """Run the base with the adapters `names`, or with none; nothing's `requires_grad` changes.

    peft's own switches (`disable_adapter`, `set_adapter`) also freeze and unfreeze weights.
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
    """The base alone, or with the adapter that the run began with."""
    return adapter_view(model, [REFERENCE] if REFERENCE in model.peft_config else [])  # type: ignore[operator]


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]


@contextmanager
def adding_adapter(model: nn.Module, trains: bool) -> Iterator[None]:
    """What is added inside trains, or does not; what was there stays as it was, which peft decides anew with every adapter."""
    there = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on GPT-2's layers, and names of transformers that are to go
        yield
    for parameter in model.parameters():
        parameter.requires_grad_(there.get(id(parameter), trains))


def without_dropout(model: nn.Module, names: Iterable[str]) -> None:
    """Take the dropout of these adapters off: of one that was trained before, it is no longer wanted."""
    for path, module in model.named_modules():
        if "lora_dropout" in path and isinstance(module, nn.Dropout) and path.rpartition(".")[-1] in names:
            module.p = 0.0


def current_adapter_view(model: nn.Module) -> AbstractContextManager[None]:
    """The adapters that are on as this is called; for what runs later, such as a recomputation in the backward pass."""
    layer = _layers(model)[0]
    return adapter_view(model, [] if layer._disable_adapters else layer.active_adapters)


def is_adapted(model: nn.Module) -> bool:
    """The model carries an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")

"""Models by hub name, local folder or config: the one place where weights are loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.models.chat_templates import TEMPLATES
from rlhf_lightning.models.config import LoraOptions, ModelConfig
from rlhf_lightning.models.paths import base_path, check_weights, from_pretrained, is_adapter, one_line, resolve_path
from rlhf_lightning.models.reward_model import NORMALIZATION_FILE
from rlhf_lightning.models.tokenizer import adds_embeddings, load_tokenizer, stop_token_ids
from rlhf_lightning.seeding import seeded

__all__ = [
    "TEMPLATES",
    "LoraOptions",
    "ModelConfig",
    "adopt_normalization",
    "load_causal_lm",
    "load_model_config",
    "load_reward_config",
    "load_reward_model",
    "load_tokenizer",
    "resolve_path",
    "stop_token_ids",
]

HEADS = ("score.", "classifier.", "classification_head.")
"""Names of the weights that a reward model may lack: it then begins with a new head."""


def load_model_config(config: ModelConfig) -> Any:
    """The model's transformers config, dropout off, without weights.

    Raises:
        UserError: there is no such model, it has no weights that could be read, or the config describes none.
    """
    from transformers import AutoConfig

    if config.config is None:
        path = base_path(config.name_or_path or "")
        check_weights(path)
        found = from_pretrained(AutoConfig, path, config.trust_remote_code, what="config")
    else:
        found = _described(config.config, load_tokenizer(config))
    for part in {id(c): c for c in (found, found.get_text_config())}.values():
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):  # of activations, attention and whole layers
                setattr(part, name, 0.0)
    return found


def _described(description: dict[str, Any], tokenizer: Any) -> Any:
    """The transformers config that a user's dictionary describes; vocabulary and special tokens are the tokenizer's.

    Raises:
        UserError: an unknown model type or key, or sizes that do not go together.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    given = dict(description)
    kind = given.pop("model_type", None)
    if kind is None:
        raise UserError("the model's config has no model_type; name an architecture, such as model_type: llama")
    if kind not in CONFIG_MAPPING:
        close = nearest(str(kind), CONFIG_MAPPING.keys())
        raise UserError(
            f"model_type {kind!r} is unknown to transformers; {close if '?' in close else 'llama, for one, is known'}"
        )
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    try:
        found = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **given})
    except Exception as error:  # transformers' config classes raise what they like
        raise UserError(f"the model's config describes no {kind}: {one_line(error)}") from error
    _check_keys(kind, given, found)
    heads, shared = (getattr(found, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if heads and shared and heads % shared:
        raise UserError(
            f"the model's config has num_attention_heads {heads} and num_key_value_heads {shared}"
            f"{'' if 'num_key_value_heads' in given else f' ({kind} has that many by default)'}; the first must be a multiple "
            f"of the second: set num_key_value_heads, to {heads} for instance"
        )
    return found


def _check_keys(kind: str, given: dict[str, Any], found: Any) -> None:
    """transformers takes any key and keeps what it does not know as an attribute that nothing reads."""
    if not dataclasses.is_dataclass(found):
        return
    known = {item.name for item in dataclasses.fields(found)} | set(getattr(found, "attribute_map", {}))
    unknown = [key for key in given if key not in known and key in vars(found)]
    if unknown:
        raise UserError(
            f"the model's config has an unknown key {unknown[0]!r} for {kind}; {nearest(unknown[0], known)}"
        )


def load_causal_lm(config: ModelConfig) -> Any:
    """The language model: a transformers model, or a peft model around a frozen (perhaps quantised) one.

    Raises:
        UserError: it cannot be loaded, the folder lacks some of its weights, or is that of a classifier.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    found = load_model_config(config)
    if any("SequenceClassification" in name for name in found.architectures or []):
        raise UserError(
            f"{config.name_or_path} is a classifier ({found.architectures[0]}), such as a reward model, and no language model"
        )
    model = _weights(AutoModelForCausalLM, config, found)
    # without the penalties of its own, which `generate` would sample with and no log-probability knows of
    model.generation_config = GenerationConfig()
    return _finished(model, config, task="CAUSAL_LM")


def load_reward_config(config: ModelConfig) -> Any:
    """The config of a sequence classifier with one output, without weights.

    Raises:
        UserError: it is a classifier with more outputs or one that does not read the last token, or the adapter of a language
            model.
    """
    from transformers import AutoModelForSequenceClassification

    found = load_model_config(config)
    _refuse_language_adapter(config)
    adopt_normalization(found, config)
    classifier = any("SequenceClassification" in name for name in found.architectures or [])
    if classifier and found.num_labels != 1:
        raise UserError(
            f"{config.name_or_path} is a classifier with {found.num_labels} outputs; a reward model has one: give a model "
            "with num_labels 1, or a language model to put a new head on"
        )
    found.num_labels = 1
    if (text := found.get_text_config()).pad_token_id is None:
        text.pad_token_id = load_tokenizer(config).pad_token_id
    with torch.device("meta"):
        bare = _from_config(AutoModelForSequenceClassification, config, copy.deepcopy(found))
    if not hasattr(bare, "score"):  # so do all decoders of transformers call their head, and no encoder
        raise UserError(
            f"{config.name_or_path or 'the model'} is a {type(bare).__name__}, an encoder, whose classifier does not read the "
            "last token of a text as a reward model here does; give one on a decoder (Llama, Qwen, …)"
        )
    return found


def load_reward_model(config: ModelConfig) -> Any:
    """A sequence classifier with one output; its head starts at random where the folder is that of a language model.

    Raises:
        UserError: it cannot be loaded, lacks weights other than the head's, or see `load_reward_config`.
    """
    from transformers import AutoModelForSequenceClassification

    found = load_reward_config(config)
    model = _weights(AutoModelForSequenceClassification, config, found, may_lack=HEADS)
    return _finished(model, config, task="SEQ_CLS")


def _refuse_language_adapter(config: ModelConfig) -> None:
    folder = resolve_path(config.name_or_path) if config.name_or_path else ""
    if not is_adapter(folder):
        return
    from peft import PeftConfig

    if PeftConfig.from_pretrained(folder).task_type == "CAUSAL_LM":
        raise UserError(
            f"{config.name_or_path} is the adapter of a language model, and a reward model cannot go on from it; merge it into "
            f'its base: python -c "from peft import AutoPeftModelForCausalLM as M; '
            f"M.from_pretrained({folder!r}).merge_and_unload().save_pretrained('merged')\", then give merged as name_or_path "
            f"and {folder} as tokenizer"
        )


def adopt_normalization(found: Any, config: ModelConfig) -> None:
    """How scores are normalised is said beside a reward model's adapter, as its base does not know."""
    folder = resolve_path(config.name_or_path) if config.name_or_path else ""
    beside = Path(folder) / NORMALIZATION_FILE
    if is_adapter(folder) and beside.is_file():
        for name, value in json.loads(beside.read_text()).items():
            setattr(found, name, float(value))


def _check_architecture(auto: Any, found: Any) -> None:
    """transformers would list all the architectures that it has."""
    if type(found) not in auto._model_mapping and auto.__name__ not in getattr(found, "auto_map", {}):
        kind = (
            "language model"
            if auto.__name__ == "AutoModelForCausalLM"
            else "sequence classifier, such as a reward model,"
        )
        raise UserError(f"transformers has no {kind} of the architecture {found.model_type}; choose another")


def _from_config(auto: Any, config: ModelConfig, found: Any) -> Any:
    _check_architecture(auto, found)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    given = {"attn_implementation": config.attention, "trust_remote_code": config.trust_remote_code}
    try:
        return auto.from_config(found, dtype=dtype, **given)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"no model can be made from the config: {one_line(error)}") from error


def _weights(auto: Any, config: ModelConfig, found: Any, may_lack: tuple[str, ...] = ()) -> Any:
    with seeded(config.seed):
        if config.config is not None:
            return _from_config(auto, config, found)
        _check_architecture(auto, found)
        path, dtype = (
            base_path(config.name_or_path or ""),
            "auto" if config.dtype == "auto" else getattr(torch, config.dtype),
        )
        options = {"config": found, "dtype": dtype, "attn_implementation": config.attention}
        model, report = from_pretrained(
            auto,
            path,
            config.trust_remote_code,
            what="weights",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    lacking = sorted(name for name in report["missing_keys"] if not name.startswith(may_lack or ("\0",)))
    if lacking:
        raise UserError(
            f"the weights of {path} lack {len(lacking)} tensors of {type(model).__name__}, {lacking[0]} for one"
        )
    return _with_embeddings(model, config)


def _with_embeddings(model: Any, config: ModelConfig) -> Any:
    """The model with an embedding for each token of the tokenizer; new ones are sampled around the mean of the others.

    The seed is the config's, so that a policy and its reference begin with the same.
    """
    if not adds_embeddings(config):
        return model
    size = len(load_tokenizer(config))
    if size > model.config.get_text_config().vocab_size:
        with seeded(config.seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.resize_token_embeddings(size)
    return model


def _finished(model: Any, config: ModelConfig, task: str) -> Any:
    """Dropout off, base quantised, adapter on, gradients where they belong."""
    from rlhf_lightning.models.quantization import quantize_

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"  # Llama 4 names its trunk as the model with images does
    model.base_model.max_tokens_per_batch = config.max_tokens_per_batch
    if not config.pack:
        model.base_model.supports_packing = False
    if config.quantization:
        quantize_(model, config.quantization)
    adapter = resolve_path(config.name_or_path) if config.name_or_path else ""
    if config.lora or is_adapter(adapter):
        from rlhf_lightning.models.adapters import with_adapter

        model = with_adapter(model, config, adapter if is_adapter(adapter) else None, task)
    if config.gradient_checkpointing:
        _recompute_activations(model)
    return _in_modes(model, config)


def _in_modes(model: Any, config: ModelConfig) -> Any:
    """In eval mode, which Lightning leaves alone, but for an adapter's dropout and blocks that run again, which need train mode.

    Routers of experts would add noise in it, and a step would learn from other log-probabilities than were sampled.
    """
    dropout = config.lora is not None and config.lora.dropout > 0
    for name, module in model.eval().named_modules():
        again = config.gradient_checkpointing and getattr(module, "gradient_checkpointing", False)
        module.training = bool(again or (dropout and "lora_dropout" in name))
    return model


def _recompute_activations(model: Any) -> None:
    """Keep the inputs of blocks only; of a base with several adapters a block runs again with those that it ran with."""
    from rlhf_lightning.models.adapters import current_adapter_view, is_adapted

    options: dict[str, Any] = {"use_reentrant": False}
    if is_adapted(model):
        options["context_fn"] = lambda: (nullcontext(), current_adapter_view(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a new name for it, which older versions do not know
        try:
            (model.get_base_model() if is_adapted(model) else model).gradient_checkpointing_enable(options)
        except ValueError as error:
            raise UserError(f"{one_line(error)} Set gradient_checkpointing to false") from error

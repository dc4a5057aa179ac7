"""Load models by hub name, local folder or config: the only module that loads weights."""

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
from rlhf_lightning.models.adapter_options import check_adapter_options
from rlhf_lightning.models.adapters import current_adapter_view, is_adapted, with_adapter
from rlhf_lightning.models.backbone import backbone_of, capabilities_of
from rlhf_lightning.models.chat_templates import TEMPLATES
from rlhf_lightning.models.config import LoraOptions, ModelConfig
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.paths import base_path, check_weights, from_pretrained, is_adapter, one_line, resolve_path
from rlhf_lightning.models.quantization import quantize_
from rlhf_lightning.models.reward_model import NORMALIZATION_FILE
from rlhf_lightning.models.tokenizer import adds_embeddings, load_tokenizer, stop_token_ids
from rlhf_lightning.seeding import seeded

__all__ = [
    "TEMPLATES",
    "LoraOptions",
    "ModelConfig",
    "adopt_normalization",
    "load_causal_lm",
    "load_encoder",
    "load_model_config",
    "load_reward_config",
    "load_reward_model",
    "load_tokenizer",
    "resolve_path",
    "stop_token_ids",
]

HEADS = ("score.", "classifier.", "classification_head.")
"""Prefixes of the weights that a reward model may lack; it then starts with a new head."""


def load_model_config(config: ModelConfig) -> Any:
    """Load the model's transformers config, with dropout set to 0, and no weights.

    Raises:
        UserError: the model does not exist, its weights are in no readable format, or the config is invalid.
    """
    from transformers import AutoConfig

    if config.config is None:
        given = config.name_or_path or ""
        if is_adapter(given):
            check_weights(given)
            check_adapter_options(config, given)
        path = base_path(given)
        check_weights(path)
        model_config = from_pretrained(AutoConfig, path, config.trust_remote_code, what="config")
    else:
        model_config = _config_from_options(config.config, load_tokenizer(config))
    for options in {id(c): c for c in (model_config, model_config.get_text_config())}.values():
        for name, value in vars(options).items():
            if "drop" in name and isinstance(value, float):  # dropout of activations, attention and whole layers
                setattr(options, name, 0.0)
    return model_config


def _config_from_options(options: dict[str, Any], tokenizer: Any) -> Any:
    """Build a transformers config from a user's options; vocabulary and special tokens are the tokenizer's.

    Raises:
        UserError: the model type or a key is unknown, or sizes are inconsistent.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    user_options = dict(options)
    kind = user_options.pop("model_type", None)
    if kind is None:
        raise UserError("the model's config has no model_type; set it to an architecture, such as model_type: llama")
    if kind not in CONFIG_MAPPING:
        close = nearest(str(kind), CONFIG_MAPPING.keys())
        raise UserError(
            f"model_type {kind!r} is unknown to transformers; {close if '?' in close else 'set it to llama, for example'}"
        )
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    try:
        model_config = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **special, **user_options})
    except Exception as error:  # transformers' config classes raise any exception
        raise UserError(f"the model's config is no valid {kind} config: {one_line(error)}") from error
    _check_keys(kind, user_options, model_config)
    heads, shared = (getattr(model_config, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
    if heads and shared and heads % shared:
        raise UserError(
            f"the model's config has num_attention_heads {heads} and num_key_value_heads {shared}"
            f"{'' if 'num_key_value_heads' in user_options else f' (the default of {kind})'}; the first must be a multiple "
            f"of the second: set num_key_value_heads, for example to {heads}"
        )
    return model_config


def _check_keys(kind: str, user_options: dict[str, Any], model_config: Any) -> None:
    """Refuse unknown keys, which transformers would keep as attributes that no code reads."""
    if not dataclasses.is_dataclass(model_config):
        return
    valid = {item.name for item in dataclasses.fields(model_config)} | set(getattr(model_config, "attribute_map", {}))
    unknown = [key for key in user_options if key not in valid and key in vars(model_config)]
    if unknown:
        raise UserError(
            f"the model's config has an unknown key {unknown[0]!r} for {kind}; {nearest(unknown[0], valid)}"
        )


def load_encoder(config: ModelConfig, max_prompt_length: int | None = None, model_config: Any = None) -> Encoder:
    """Load tokenizer, stop tokens and context length of a model, without its weights.

    Args:
        config: of the model.
        max_prompt_length: tokens; longer prompts lose their beginning.
        model_config: transformers' config, where it is loaded already.
    """
    model_config, tokenizer = model_config or load_model_config(config), load_tokenizer(config)
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return Encoder(tokenizer, stop_token_ids(tokenizer, model_config, config), context, max_prompt_length)


def load_causal_lm(config: ModelConfig) -> Any:
    """Load a language model: a transformers model, or a peft model around a frozen, optionally quantised one.

    Raises:
        UserError: it cannot be loaded, the folder lacks weights, or the folder holds a classifier.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    model_config = load_model_config(config)
    if any("SequenceClassification" in name for name in model_config.architectures or []):
        raise UserError(
            f"{config.name_or_path} is a classifier ({model_config.architectures[0]}), such as a reward model; set "
            "name_or_path to a language model"
        )
    model = _load_weights(AutoModelForCausalLM, config, model_config)
    # `generate` would apply the model's own penalties, which log-probabilities do not include
    model.generation_config = GenerationConfig()
    return _finished(model, config, task="CAUSAL_LM")


def load_reward_config(config: ModelConfig) -> Any:
    """Load the config of a sequence classifier with one output, without weights.

    Raises:
        UserError: the classifier has more outputs or does not read the last token, or the folder holds the adapter of a
            language model.
    """
    from transformers import AutoModelForSequenceClassification

    model_config = load_model_config(config)
    _refuse_language_adapter(config)
    adopt_normalization(model_config, config)
    classifier = any("SequenceClassification" in name for name in model_config.architectures or [])
    if classifier and model_config.num_labels != 1:
        raise UserError(
            f"{config.name_or_path} is a classifier with {model_config.num_labels} outputs, and a reward model has one; set "
            "name_or_path to a model with num_labels 1, or to a language model, which gets a new head"
        )
    model_config.num_labels = 1
    if (text := model_config.get_text_config()).pad_token_id is None:
        text.pad_token_id = load_tokenizer(config).pad_token_id
    with torch.device("meta"):
        bare = _from_config(AutoModelForSequenceClassification, config, copy.deepcopy(model_config))
    if not hasattr(bare, "score"):  # all decoders of transformers use this name for their head, and no encoder does
        raise UserError(
            f"{config.name_or_path or 'the model'} is a {type(bare).__name__}, an encoder, whose classifier does not read the "
            "last token of a text; set name_or_path to a classifier on a decoder (Llama, Qwen, …)"
        )
    return model_config


def load_reward_model(config: ModelConfig) -> Any:
    """Load a sequence classifier with one output; a language model gets a randomly initialised head.

    Raises:
        UserError: it cannot be loaded, lacks weights other than the head's, or `load_reward_config` refuses it.
    """
    from transformers import AutoModelForSequenceClassification

    model_config = load_reward_config(config)
    model = _load_weights(AutoModelForSequenceClassification, config, model_config, may_lack=HEADS)
    return _finished(model, config, task="SEQ_CLS")


def load_process_config(config: ModelConfig) -> Any:
    """Load the config of a token classifier, without weights.

    Raises:
        UserError: it is another model.
    """
    model_config = load_model_config(config)
    found = model_config.architectures or [model_config.model_type]
    if not any("TokenClassification" in name for name in found):
        raise UserError(
            f"{config.name_or_path} is a {found[0]}, no token classifier; set name_or_path to a process reward model"
        )
    return model_config


def load_process_model(config: ModelConfig) -> Any:
    """Load a token classifier."""
    from transformers import AutoModelForTokenClassification

    return _finished(
        _load_weights(AutoModelForTokenClassification, config, load_process_config(config)), config, "TOKEN_CLS"
    )


def _refuse_language_adapter(config: ModelConfig) -> None:
    """Raise an error where the folder holds the adapter of a language model."""
    folder = resolve_path(config.name_or_path) if config.name_or_path else ""
    if not is_adapter(folder):
        return
    from peft import PeftConfig

    if PeftConfig.from_pretrained(folder).task_type == "CAUSAL_LM":
        raise UserError(
            f"{config.name_or_path} is the adapter of a language model, which a reward model cannot start from; merge it into "
            f'its base: python -c "from peft import AutoPeftModelForCausalLM as M; '
            f"M.from_pretrained({folder!r}).merge_and_unload().save_pretrained('merged')\", then set name_or_path to merged "
            f"and tokenizer to {folder}"
        )


def adopt_normalization(model_config: Any, config: ModelConfig) -> None:
    """Copy the score normalisation from the folder of a reward model's adapter into `model_config`, which is the base's."""
    folder = resolve_path(config.name_or_path) if config.name_or_path else ""
    path = Path(folder) / NORMALIZATION_FILE
    if is_adapter(folder) and path.is_file():
        for name, value in json.loads(path.read_text()).items():
            setattr(model_config, name, float(value))


def _check_architecture(auto: Any, model_config: Any) -> None:
    """Refuse an architecture without the model class in one line; transformers would list all of its architectures."""
    if type(model_config) not in auto._model_mapping and auto.__name__ not in getattr(model_config, "auto_map", {}):
        kind = (
            "language model"
            if auto.__name__ == "AutoModelForCausalLM"
            else "sequence classifier, such as a reward model,"
        )
        raise UserError(
            f"transformers has no {kind} of the architecture {model_config.model_type}; set name_or_path to another model"
        )


def _from_config(auto: Any, config: ModelConfig, model_config: Any) -> Any:
    """Build a randomly initialised model."""
    _check_architecture(auto, model_config)
    dtype = torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)
    options = {"attn_implementation": config.attention, "trust_remote_code": config.trust_remote_code}
    try:
        return auto.from_config(model_config, dtype=dtype, **options)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise UserError(f"no model can be built from the config: {one_line(error)}") from error


def _load_weights(auto: Any, config: ModelConfig, model_config: Any, may_lack: tuple[str, ...] = ()) -> Any:
    """Load a model's weights, or initialise them from the seed; weights whose names start with `may_lack` may be missing."""
    with seeded(config.seed):
        if config.config is not None:
            return _from_config(auto, config, model_config)
        _check_architecture(auto, model_config)
        path = base_path(config.name_or_path or "")
        dtype = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
        options = {"config": model_config, "dtype": dtype, "attn_implementation": config.attention}
        model, report = from_pretrained(
            auto,
            path,
            config.trust_remote_code,
            what="weights",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(may_lack or ("\0",)))
    if missing:
        raise UserError(
            f"the weights of {path} lack {len(missing)} tensors of {type(model).__name__}, for example {missing[0]}"
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
    """Disable dropout, set capabilities, quantise the base, attach the adapter, and set train or eval mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    capabilities = capabilities_of(backbone_of(model))
    capabilities.max_tokens_per_batch = config.max_tokens_per_batch
    if not config.pack:
        capabilities.packing = False
    if config.quantization:
        quantize_(model, config.quantization)
    adapter = resolve_path(config.name_or_path) if config.name_or_path else ""
    if config.lora or is_adapter(adapter):
        model = with_adapter(model, config, adapter if is_adapter(adapter) else None, task)
    if config.gradient_checkpointing:
        _recompute_activations(model)
    return _in_modes(model, config)


def _in_modes(model: Any, config: ModelConfig) -> Any:
    """Set eval mode, which Lightning keeps, except for an adapter's dropout and for blocks that are recomputed.

    In train mode the routers of experts add noise, so training would use other log-probabilities than sampling.
    """
    dropout = config.lora is not None and config.lora.dropout > 0
    for name, module in model.eval().named_modules():
        recomputed = config.gradient_checkpointing and getattr(module, "gradient_checkpointing", False)
        module.training = bool(recomputed or (dropout and "lora_dropout" in name))
    return model


def _recompute_activations(model: Any) -> None:
    """Enable gradient checkpointing; a block with several adapters is recomputed with those of its forward pass."""
    options: dict[str, Any] = {"use_reentrant": False}
    if is_adapted(model):
        options["context_fn"] = lambda: (nullcontext(), current_adapter_view(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecation, whose replacement older versions lack
        try:
            (model.get_base_model() if is_adapted(model) else model).gradient_checkpointing_enable(options)
        except ValueError as error:
            raise UserError(f"{one_line(error)} Set gradient_checkpointing to false") from error

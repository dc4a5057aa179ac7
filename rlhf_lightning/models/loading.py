"""Models and tokenizers by hub name, local folder or config: the one place where they are loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rlhf_lightning.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent

TEMPLATES = {
    "dialogue": (
        "{% for message in messages %}{{ '\n\nHuman: ' if message['role'] == 'user' else '\n\nAssistant: ' }}"
        "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@dataclass
class LoraOptions:
    """A low-rank adapter (Hu et al. 2021), by peft."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter's input; keep 0 where log-probabilities are compared."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get one; all linear layers but the head by default."""
    rslora: bool = False
    """Scale by alpha / √r instead."""


@dataclass
class ModelConfig:
    """Where a model comes from and how it is loaded."""

    name_or_path: str | None = None
    """A hub name, a local folder (a run's `export`, an adapter's folder too), or the package's own playground/sft, playground/reward."""
    config: dict[str, Any] | None = None
    """Instead of a name: a model from scratch, such as {model_type: llama, hidden_size: 64}; needs `tokenizer`."""
    tokenizer: str | None = None
    """Hub name or folder of the tokenizer; by default the model's."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the weights."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantise the frozen base; needs `lora`."""
    lora: LoraOptions | None = None
    """Train an adapter and leave the base as it is."""
    chat_template: str | None = None
    """`dialogue` (\\n\\nHuman: … \\n\\nAssistant: …), `chatml`, a file, or a Jinja template; by default the tokenizer's."""
    pad_token: str | None = None
    """For a tokenizer without one; may be its end-of-sequence token."""
    stop_tokens: list[str] = field(default_factory=list)
    """Tokens that end a response besides those the model names."""
    attention: str = "sdpa"
    """transformers' attn_implementation."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, smaller."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    seed: int = 0
    """Of weights that start at random: a model from scratch, an adapter, a head."""

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded.

        Raises:
            UserError: neither or both of name and config; a config without a tokenizer or a quantised base that would train.
        """
        if (self.name_or_path is None) == (self.config is None):
            given = "neither" if self.config is None else "both"
            raise UserError(f"a model needs one of name_or_path and config, and {given} is given")
        if self.config is not None and self.tokenizer is None:
            raise UserError("a model from a config needs a tokenizer: set `tokenizer` to a folder or hub name")
        if self.quantization and not self.lora and not (self.name_or_path and is_adapter(resolve_path(self.name_or_path))):
            raise UserError(f"quantization {self.quantization} freezes the base, so something else must train: set `lora`")


def resolve_path(name_or_path: str) -> str:
    """A local folder as a path, one of the package's playground models, or a hub name as it is.

    Raises:
        UserError: it looks like a local path and is not there.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.exists():
        return str(path)
    if name_or_path.startswith("playground/"):
        shipped = PACKAGE / name_or_path
        if shipped.exists():
            return str(shipped)
        siblings = [f"playground/{p.parent.name}" for p in (PACKAGE / "playground").glob("*/config.json")]
        raise UserError(f"there is no model {name_or_path!r} in the package; {nearest(name_or_path, siblings)}")
    local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or path.parent.name and path.parent.is_dir()
    if local:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, names)}" if names else f", nor is the folder {path.parent}"
        raise UserError(f"model folder {name_or_path} is not there{hint}")
    return name_or_path


def is_adapter(path: str) -> bool:
    """The folder holds a peft adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def base_path(config: ModelConfig) -> str:
    """The model's folder or hub name; for an adapter that of the model it was trained on."""
    assert config.name_or_path is not None
    path = resolve_path(config.name_or_path)
    if not is_adapter(path):
        return path
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise UserError(f"the adapter {path} does not say which model it belongs to (base_model_name_or_path)")
    return resolve_path(base)


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer, with a pad token and a stop token.

    Raises:
        UserError: it cannot be loaded, or lacks one of the two.
    """
    from transformers import AutoTokenizer

    path = resolve_path(config.tokenizer or config.name_or_path or "")
    if config.tokenizer is None and is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = base_path(config)
    tokenizer = _loaded(AutoTokenizer, path, config, what="tokenizer")
    if config.pad_token is not None:
        if config.pad_token not in tokenizer.get_vocab():
            raise UserError(f"pad_token {config.pad_token!r} is not in the vocabulary of the tokenizer {path}")
        tokenizer.pad_token = config.pad_token
    if config.chat_template is not None:
        tokenizer.chat_template = _template(config.chat_template)
    if tokenizer.eos_token_id is None and not config.stop_tokens:
        raise UserError(f"the tokenizer {path} has no end-of-sequence token, so no response would end; set stop_tokens")
    if tokenizer.pad_token_id is None:
        eos = tokenizer.eos_token
        raise UserError(f"the tokenizer {path} has no pad token; set pad_token, to its end-of-sequence token {eos!r} for instance")
    return tokenizer


def _template(given: str) -> str:
    if given in TEMPLATES:
        return TEMPLATES[given]
    if "{" in given:
        return given
    if not Path(given).is_file():
        raise UserError(f"chat_template {given!r} is neither a file nor a template; {nearest(given, TEMPLATES)}")
    return Path(given).read_text()


def load_model_config(config: ModelConfig) -> Any:
    """The model's transformers config, dropout off, without weights.

    Raises:
        UserError: an unknown model type, or the config cannot be loaded.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if config.config is None:
        found = _loaded(AutoConfig, base_path(config), config, what="config")
    else:
        given = dict(config.config)
        kind = given.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise UserError(f"model config has model_type {kind!r}; {nearest(str(kind), CONFIG_MAPPING.keys())}")
        found = AutoConfig.for_model(kind, **{**_vocabulary(load_tokenizer(config)), **given})
    for name in vars(found):
        if ("dropout" in name or "pdrop" in name) and isinstance(getattr(found, name), float):
            setattr(found, name, 0.0)
    return found


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def load_causal_lm(config: ModelConfig) -> Any:
    """The language model: a transformers model, or a peft model around a frozen (perhaps quantised) one."""
    from transformers import AutoModelForCausalLM

    model = _weights(AutoModelForCausalLM, config)
    return finished(model, config)


def load_reward_model(config: ModelConfig) -> Any:
    """A sequence classifier with one output; its head starts at random where the folder is that of a language model."""
    from transformers import AutoModelForSequenceClassification

    model = _weights(AutoModelForSequenceClassification, config, num_labels=1)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(config).pad_token_id
    return finished(model, config, task="SEQ_CLS")


def finished(model: Any, config: ModelConfig, task: str = "CAUSAL_LM") -> Any:
    """Dropout off, base quantised, adapter on, gradients where they belong."""
    from rlhf_lightning.models.adapters import with_adapter
    from rlhf_lightning.models.quantization import quantize_

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if config.quantization:
        quantize_(model, config.quantization)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    adapter = resolve_path(config.name_or_path) if config.name_or_path else ""
    if config.lora or is_adapter(adapter):
        model = with_adapter(model, config, adapter if is_adapter(adapter) else None, task)
    return model.eval()


def _weights(auto: Any, config: ModelConfig, **more: Any) -> Any:
    found = load_model_config(config)
    for name, value in more.items():
        setattr(found, name, value)
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.config is not None:
            return auto.from_config(found, attn_implementation=config.attention, dtype=dtype or torch.float32)
        return _loaded(
            auto,
            base_path(config),
            config,
            what="weights",
            config=found,
            dtype=dtype or "auto",
            attn_implementation=config.attention,
            use_safetensors=True,
        )


def _loaded(auto: Any, path: str, source: ModelConfig, what: str, **more: Any) -> Any:
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a new head on an old trunk is what was asked for, not news
    transformers.utils.logging.disable_progress_bar()
    try:
        return auto.from_pretrained(path, trust_remote_code=source.trust_remote_code, **more)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the {what} of {path} cannot be loaded: {reason}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def stop_token_ids(tokenizer: Any, model_config: Any, config: ModelConfig) -> list[int]:
    """Every id that ends a response: the tokenizer's, those the model's config or generation config name, and the user's.

    Raises:
        UserError: a stop token that is not one token of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in config.stop_tokens if token not in vocabulary]
    if unknown:
        raise UserError(f"stop token {unknown[0]!r} is not one token of the vocabulary; stop tokens are single tokens")
    named = [vocabulary[token] for token in config.stop_tokens] + _ids(model_config.eos_token_id) + _generation_stops(config)
    first = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys(i for i in first + named if i < len(tokenizer)))


def _generation_stops(config: ModelConfig) -> list[int]:
    from transformers import GenerationConfig

    if config.name_or_path is None:
        return []
    try:
        return _ids(GenerationConfig.from_pretrained(base_path(config)).eos_token_id)
    except OSError:
        return []


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]

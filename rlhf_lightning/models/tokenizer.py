"""Tokenizers: loaded with a pad token, a stop token and a chat template, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.models.chat_templates import TEMPLATES
from rlhf_lightning.models.config import ModelConfig
from rlhf_lightning.models.paths import base_path, from_pretrained, is_adapter, resolve_path


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer, with a pad token and a stop token.

    Raises:
        UserError: it cannot be loaded, or lacks one of the two.
    """
    path = resolve_path(config.tokenizer or config.name_or_path or "")
    if config.tokenizer is None and is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = base_path(config.name_or_path or "")
    tokenizer = from_pretrained(_tokenizer_class(path), path, config.trust_remote_code, what="tokenizer")
    added = [token for token in config.new_tokens if token not in tokenizer.get_vocab()]
    if added:
        tokenizer.add_tokens(added, special_tokens=True)
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
        raise UserError(
            f"the tokenizer {path} has no pad token; set pad_token, to its end-of-sequence token {eos!r} for instance"
        )
    return tokenizer


def load_vocabulary(name_or_path: str, trust_remote_code: bool) -> dict[str, int]:
    """The tokens of a model's tokenizer with their ids.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    path = resolve_path(name_or_path)
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = base_path(name_or_path)
    tokenizer = from_pretrained(_tokenizer_class(path), path, trust_remote_code, what="tokenizer")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _tokenizer_class(path: str) -> Any:
    """AutoTokenizer, unless a local folder declares a plain fast tokenizer.

    transformers 5 loads those of a Qwen2 model (and some others) as that model's own class all the same, which splits text
    by other rules and adds a token for which there is no embedding.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    declared = Path(path) / "tokenizer_config.json"
    if (Path(path) / "tokenizer.json").is_file() and declared.is_file():
        name = json.loads(declared.read_text(encoding="utf-8")).get("tokenizer_class")
        if name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast
    return AutoTokenizer


def _template(given: str) -> str:
    if given in TEMPLATES:
        return TEMPLATES[given]
    if "{" in given:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"chat_template {given!r} is neither a file nor a template; {nearest(given, TEMPLATES)}")
    return path.read_text(encoding="utf-8")


def stop_token_ids(tokenizer: Any, model_config: Any, config: ModelConfig) -> list[int]:
    """Every id that ends a response: the tokenizer's, those the model's config or generation config name, and the user's.

    Raises:
        UserError: a stop token that is not one token of the vocabulary, or a tokenizer that is not this model's.
    """
    _check_vocabulary(tokenizer, model_config, config)
    vocabulary = tokenizer.get_vocab()
    unknown = [token for token in config.stop_tokens if token not in vocabulary]
    if unknown:
        raise UserError(f"stop token {unknown[0]!r} is not one token of the vocabulary; stop tokens are single tokens")
    configs = (model_config, model_config.get_text_config())  # the same one, but for multimodal models
    ends = [i for each in configs for i in _ids(getattr(each, "eos_token_id", None))]
    named = [vocabulary[token] for token in config.stop_tokens] + ends + _generation_stops(config)
    first = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys(i for i in first + named if i < len(tokenizer)))


def _generation_stops(config: ModelConfig) -> list[int]:
    from transformers import GenerationConfig

    if config.name_or_path is None:
        return []
    try:
        return _ids(GenerationConfig.from_pretrained(base_path(config.name_or_path)).eos_token_id)
    except OSError:
        return []


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def adds_embeddings(config: ModelConfig) -> bool:
    """Tell whether the tokenizer may have more tokens than the base has embeddings: new ones, or those of an adapter's run."""
    return bool(config.new_tokens) or (
        config.name_or_path is not None and is_adapter(resolve_path(config.name_or_path))
    )


def _check_vocabulary(tokenizer: Any, model_config: Any, config: ModelConfig) -> None:
    size = model_config.get_text_config().vocab_size
    if len(tokenizer) > size and not adds_embeddings(config):
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens and the model has embeddings for {size}; "
            "give the tokenizer that belongs to the model, or the model a larger vocab_size"
        )

"""Where models come from: names, folders, adapters' folders, and what is said when one is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.paths import is_adapter, resolve_path


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
    """Names of the layers that get one; by default all linear layers but the head.

    Of a mixture of experts it is what peft makes of that: attention, routers and experts, and no dense or shared MLP, of Mixtral,
    Qwen, DeepSeek and GLM; no experts of GPT-OSS, Granite, PhiMoE, Jamba and Llama 4."""
    rslora: bool = False
    """Scale by alpha / √r instead."""
    modules_to_save: list[str] = field(default_factory=list)
    """Names of layers that train whole and are saved with the adapter, such as embed_tokens and lm_head for new tokens."""

    def __post_init__(self) -> None:
        """Refuse what is no adapter.

        Raises:
            UserError: a rank below one, or a dropout outside [0, 1).
        """
        if self.r < 1:
            raise UserError(f"lora.r is {self.r}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass
class ModelConfig:
    """Where a model comes from and how it is loaded."""

    name_or_path: str | None = None
    """A hub name, a local folder (a run's `export`, an adapter's too), or the package's playground/sft, playground/reward."""
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
    new_tokens: list[str] = field(default_factory=list)
    """Tokens that are added to the vocabulary, with a new embedding each; those that it has are left as they are.

    Markers of a chat template, for instance. An adapter needs lora.modules_to_save, or their embeddings do not train."""
    attention: str | None = None
    """transformers' attn_implementation; by default sdpa where the architecture has it, else eager."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, smaller."""
    pack: bool = True
    """Compute a prompt once for all of its responses and lay rows end to end, where that is exact; False pads every row."""
    max_tokens_per_batch: int | None = 2048
    """Of one pass, with gradient or without: more rows are taken in pieces, with the same result. Null takes all at once."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    seed: int = 0
    """Of weights that start at random: a model from scratch, an adapter, a head."""

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded.

        Raises:
            UserError: neither or both of name and config; a config without a tokenizer, a quantised base that would train, or
                passes of no token.
        """
        if (self.name_or_path is None) == (self.config is None):
            given = "neither is" if self.config is None else "both are"
            raise UserError(f"a model needs one of name_or_path and config, and {given} given")
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise UserError(
                f"max_tokens_per_batch is {self.max_tokens_per_batch}; it must be at least 1, or null for no limit"
            )
        if self.config is not None and self.tokenizer is None:
            raise UserError("a model from a config needs a tokenizer: set `tokenizer` to a folder or hub name")
        if self.new_tokens and self.lora and not self.lora.modules_to_save:
            raise UserError(
                f"new_tokens adds {self.new_tokens[0]!r} to the vocabulary, and a LoRA adapter trains no embedding; set "
                "lora.modules_to_save: [embed_tokens, lm_head] (the names of the embedding and the head of the model)"
            )
        if any(not token.strip() for token in self.new_tokens):
            raise UserError("new_tokens has an empty token; remove it")
        if (
            self.quantization
            and not self.lora
            and not (self.name_or_path and is_adapter(resolve_path(self.name_or_path)))
        ):
            raise UserError(
                f"quantization {self.quantization} freezes the base, so something else must train: set `lora`"
            )

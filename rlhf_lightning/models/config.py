"""Define the config of a model: its source, dtype, quantisation, adapter and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_lightning.errors import UserError, check_seed
from rlhf_lightning.models.paths import is_adapter, resolve_path


@dataclass
class LoraOptions:
    """Configure a low-rank adapter (Hu et al. 2021) of peft."""

    r: int = 16
    """Rank."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapter's input; keep 0 where log-probabilities are compared."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; by default all linear layers except the head.

    In a mixture of experts peft chooses the layers. Mixtral, Qwen, DeepSeek and GLM get adapters on attention, routers and
    experts, but not on a dense or shared MLP. GPT-OSS, Granite, PhiMoE, Jamba and Llama 4 get none on experts."""
    rslora: bool = False
    """Scale by alpha / √r instead."""
    modules_to_save: list[str] = field(default_factory=list)
    """Names of layers that train whole and are saved with the adapter, such as embed_tokens and lm_head for new tokens."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: the rank or alpha is below 1, or the dropout is outside [0, 1).
        """
        if self.r < 1:
            raise UserError(f"lora.r is {self.r}; an adapter needs a rank: set it to at least 1")
        if self.alpha < 1:
            raise UserError(f"lora.alpha is {self.alpha}; it scales the adapter: set it to at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; it is a probability: set it to at least 0 and below 1")


@dataclass
class ModelConfig:
    """Configure where a model comes from and how it is loaded."""

    name_or_path: str | None = None
    """A hub name, a local folder (a run's `export`, an adapter's too), or the package's playground/sft, playground/reward."""
    config: dict[str, Any] | None = None
    """A model from scratch, instead of a name, such as {model_type: llama, hidden_size: 64}; needs `tokenizer`."""
    tokenizer: str | None = None
    """Hub name or folder of the tokenizer; by default the model's."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Dtype of the weights."""
    quantization: Literal["nf4", "int8"] | None = None
    """Quantise the frozen base; needs `lora`."""
    lora: LoraOptions | None = None
    """Train an adapter on the frozen base."""
    chat_template: str | None = None
    """`dialogue` (\\n\\nHuman: … \\n\\nAssistant: …), `chatml`, a file, or a Jinja template; by default the tokenizer's."""
    pad_token: str | None = None
    """Pad token of a tokenizer that has none; may be its end-of-sequence token."""
    stop_tokens: list[str] = field(default_factory=list)
    """Tokens that end a response, in addition to those of the model."""
    new_tokens: list[str] = field(default_factory=list)
    """Tokens to add to the vocabulary, with a new embedding each; tokens that it has already stay as they are.

    For example markers of a chat template. An adapter needs lora.modules_to_save, or their embeddings do not train."""
    attention: str | None = None
    """transformers' attn_implementation; by default sdpa where the architecture supports it, else eager."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, less memory."""
    pack: bool = True
    """Compute a prompt once for all of its responses and pack rows, where packing is exact; False pads every row."""
    max_tokens_per_batch: int | None = 2048
    """Tokens of one pass; more rows are split into micro-batches, with the same result. Null never splits."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository."""
    seed: int = 0
    """Seed of randomly initialised weights: a model from scratch, an adapter, a head."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: neither or both of name and config are set, a config lacks a tokenizer, nothing would train beside a
                quantised base, or a pass would hold no token.
        """
        check_seed("the model's seed", self.seed)
        if (self.name_or_path is None) == (self.config is None):
            count = "neither is" if self.config is None else "both are"
            raise UserError(f"a model comes from name_or_path or from config, and {count} set; set exactly one")
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise UserError(
                f"max_tokens_per_batch is {self.max_tokens_per_batch}; a pass needs a token: set it to at least 1, or to null "
                "for no limit"
            )
        if self.config is not None and self.tokenizer is None:
            raise UserError(
                "config is set and tokenizer is not; a model from scratch has none: set tokenizer to a folder or hub name"
            )
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
                f"quantization is {self.quantization}, which freezes the base, and nothing else trains; set lora"
            )

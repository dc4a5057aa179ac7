"""Where models come from: names, folders, adapters' folders, and what is said when one is not there."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent


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
        if (
            self.quantization
            and not self.lora
            and not (self.name_or_path and is_adapter(resolve_path(self.name_or_path)))
        ):
            raise UserError(
                f"quantization {self.quantization} freezes the base, so something else must train: set `lora`"
            )


def resolve_path(name_or_path: str) -> str:
    """A local folder as a path, one of the package's playground models, or a hub name as it is.

    Raises:
        UserError: it looks like a local path and is not there.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(f"model {name_or_path} is a file; give the folder that holds config.json and the weights")
    if name_or_path.startswith("playground/"):
        return str(_shipped(name_or_path))
    inside = bool(path.parent.name) and path.parent.is_dir()
    if inside or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or os.path.isabs(path):
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, names)
        hint = f"; {close}" if close.endswith("?") else "" if names else f", nor is anything else in {path.parent}"
        raise UserError(f"model folder {name_or_path} is not there{hint}")
    return name_or_path


def _shipped(name: str) -> Path:
    folder = PACKAGE / name
    if not folder.is_dir():
        names = [f"playground/{p.parent.name}" for p in (PACKAGE / "playground").glob("*/tokenizer.json")]
        raise UserError(f"there is no model {name!r} in the package; {nearest(name, names)}")
    return folder


def is_adapter(path: str) -> bool:
    """The folder holds a peft adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def base_path(config: ModelConfig) -> str:
    """The model's folder or hub name; for an adapter that of the model it was trained on.

    Raises:
        UserError: the folder holds no model, or the adapter does not say where its base is.
    """
    assert config.name_or_path is not None
    path = resolve_path(config.name_or_path)
    if is_adapter(path):
        path = _base_of(path)
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        inside = [p.name for p in sorted(folder.iterdir()) if is_adapter(str(p)) or (p / "config.json").is_file()]
        hint = f"did you mean {folder / inside[0]}?" if inside else "a model's folder has a config.json"
        raise UserError(f"the folder {path} holds no model; {hint}")
    return path


def _base_of(adapter: str) -> str:
    """What the adapter was trained on: as it says, else beside it (a folder that was moved as a whole)."""
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    beside = Path(adapter) / "base"
    if beside.is_dir() and not (base and Path(base).is_dir()):
        return str(beside)
    if not base:
        raise UserError(f"the adapter {adapter} does not say which model it belongs to (base_model_name_or_path)")
    try:
        return resolve_path(base)
    except UserError as error:
        raise UserError(f"the adapter {adapter} belongs to a model that is not there: {error}") from error


def check_weights(path: str) -> None:
    """Refuse a local folder that has weights in pickled form only, or none, before anything is loaded.

    Raises:
        UserError: saying how to convert them.
    """
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if not pickled:
        raise UserError(f"the model folder {path} has no weights (model.safetensors)")
    raise UserError(
        f"the weights in {path} are pickled ({pickled[0]}), which can hold code, and only safetensors are read; convert them: "
        f'python -c "from transformers import AutoModelForCausalLM as M; '
        f'M.from_pretrained({path!r}, use_safetensors=False).save_pretrained({path!r})"'
    )


def loaded(auto: Any, path: str, source: ModelConfig, what: str, **more: Any) -> Any:
    """`auto.from_pretrained(path)`, without transformers' progress bars and advice.

    Raises:
        UserError: it cannot be loaded; in one line.
    """
    import transformers
    from safetensors import SafetensorError

    if source.trust_remote_code:
        _say_remote_code(path)
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a new head on an old trunk is what was asked for, not news
    transformers.utils.logging.disable_progress_bar()
    try:
        return auto.from_pretrained(path, trust_remote_code=source.trust_remote_code, **more)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"the {what} of {path} cannot be loaded: {one_line(error)}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def one_line(error: Exception) -> str:
    """The beginning of an error's text, without its line breaks."""
    return " ".join(str(error).split())[:300]


@functools.cache
@rank_zero_only
def _say_remote_code(path: str) -> None:
    print(f"trust_remote_code is on: Python code that comes with {path} may be run", flush=True)

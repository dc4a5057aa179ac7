"""Resolve model names and folders, find the base of an adapter, and check weights before they are loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf_lightning.console import print_first_time
from rlhf_lightning.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent


def resolve_path(name_or_path: str) -> str:
    """Return the path of a local folder or of a playground model, or a hub name unchanged.

    Raises:
        UserError: the name looks like a local path that does not exist.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        return str(path)
    if path.exists():
        raise UserError(f"model {name_or_path} is a file; set it to the folder that holds config.json and the weights")
    if name_or_path.startswith("playground/"):
        return str(_shipped_path(name_or_path))
    inside = bool(path.parent.name) and path.parent.is_dir()
    if inside or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or os.path.isabs(path):
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, names)
        hint = f"; {close}" if close.endswith("?") else "" if names else f"; {path.parent} is empty or missing"
        raise UserError(f"model folder {name_or_path} does not exist{hint}")
    return name_or_path


def _shipped_path(name: str) -> Path:
    """Return the folder of a playground model in the package."""
    folder = PACKAGE / name
    if not folder.is_dir():
        names = [f"playground/{p.parent.name}" for p in (PACKAGE / "playground").glob("*/tokenizer.json")]
        raise UserError(f"the package has no model {name!r}; {nearest(name, names)}")
    return folder


def is_adapter(path: str) -> bool:
    """Tell whether the folder `path` holds a peft adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def base_path(name_or_path: str) -> str:
    """Return the model's folder or hub name; an adapter gives those of its base.

    Raises:
        UserError: the folder holds no model, or the adapter does not name its base.
    """
    path = resolve_path(name_or_path)
    if is_adapter(path):
        path = _base_of(path)
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        candidates = [p.name for p in sorted(folder.iterdir()) if is_adapter(str(p)) or (p / "config.json").is_file()]
        hint = f"did you mean {folder / candidates[0]}?" if candidates else "a model's folder has a config.json"
        raise UserError(f"the folder {path} holds no model; {hint}")
    return path


def _base_of(adapter: str) -> str:
    """Return the base that the adapter names, or `base/` in its folder, which a move of the folder keeps."""
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    moved = Path(adapter) / "base"
    if moved.is_dir() and not (base and Path(base).is_dir()):
        return str(moved)
    if not base:
        raise UserError(
            f"the adapter {adapter} names no base model; set base_model_name_or_path in its adapter_config.json"
        )
    try:
        return resolve_path(base)
    except UserError as error:
        raise UserError(f"the base model of the adapter {adapter} does not exist: {error}") from error


def check_weights(path: str) -> None:
    """Check that a local folder has weights as safetensors, before anything is loaded.

    Raises:
        UserError: there are no weights, or only pickled ones; the message says how to convert them.
    """
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if not pickled:
        raise UserError(f"the model folder {path} has no weights (model.safetensors)")
    if is_adapter(path):
        raise UserError(
            f"the adapter in {path} is pickled ({pickled[0]}), which can execute code, and only safetensors are read; convert "
            "it: load it with peft where you trust its author, and save it again with save_pretrained"
        )
    raise UserError(
        f"the weights in {path} are pickled ({pickled[0]}), which can execute code, and only safetensors are read; convert them: "
        f'python -c "from transformers import AutoModelForCausalLM as M; '
        f'M.from_pretrained({path!r}, use_safetensors=False).save_pretrained({path!r})"'
    )


def from_pretrained(auto: Any, path: str, trust_remote_code: bool, what: str, **more: Any) -> Any:
    """Call `auto.from_pretrained(path)` without transformers' progress bars and advice.

    Args:
        auto: a class of transformers.
        path: a folder or hub name.
        trust_remote_code: whether Python code of the model may run.
        what: the noun for the message of an error, such as weights.
        more: further arguments of `from_pretrained`.

    Raises:
        UserError: loading failed.
    """
    import transformers
    from safetensors import SafetensorError

    if trust_remote_code:
        print_first_time(f"trust_remote_code is true: Python code of {path} may be executed")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # a new head on a pretrained backbone is expected
    transformers.utils.logging.disable_progress_bar()
    try:
        return auto.from_pretrained(path, trust_remote_code=trust_remote_code, **more)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"the {what} of {path} cannot be loaded: {one_line(error)}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def one_line(error: Exception) -> str:
    """Return the first 300 characters of an error's text, without line breaks."""
    return " ".join(str(error).split())[:300]

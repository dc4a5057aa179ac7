"""Where models come from: names, folders, adapters' folders, and what is said when one is not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf_lightning.console import print_first_time
from rlhf_lightning.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent


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
        return str(_shipped_path(name_or_path))
    inside = bool(path.parent.name) and path.parent.is_dir()
    if inside or name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1 or os.path.isabs(path):
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, names)
        hint = f"; {close}" if close.endswith("?") else "" if names else f", nor is anything else in {path.parent}"
        raise UserError(f"model folder {name_or_path} is not there{hint}")
    return name_or_path


def _shipped_path(name: str) -> Path:
    folder = PACKAGE / name
    if not folder.is_dir():
        names = [f"playground/{p.parent.name}" for p in (PACKAGE / "playground").glob("*/tokenizer.json")]
        raise UserError(f"there is no model {name!r} in the package; {nearest(name, names)}")
    return folder


def is_adapter(path: str) -> bool:
    """The folder holds a peft adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def base_path(name_or_path: str) -> str:
    """The model's folder or hub name; for an adapter that of the model it was trained on.

    Raises:
        UserError: the folder holds no model, or the adapter does not say where its base is.
    """
    path = resolve_path(name_or_path)
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


def from_pretrained(auto: Any, path: str, trust_remote_code: bool, what: str, **more: Any) -> Any:
    """`auto.from_pretrained(path)`, without transformers' progress bars and advice.

    Raises:
        UserError: it cannot be loaded; in one line.
    """
    import transformers
    from safetensors import SafetensorError

    if trust_remote_code:
        print_first_time(f"trust_remote_code is true: Python code that comes with {path} may be run")
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
    """The beginning of an error's text, without its line breaks."""
    return " ".join(str(error).split())[:300]

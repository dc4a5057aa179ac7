"""Config files: where they are, what they hold, and one merged over another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning import bounded_yaml
from rlhf_lightning.cli.shipped import shipped_folder
from rlhf_lightning.errors import UserError, nearest, shown


def find_config(name: str) -> Path:
    """Find a config as given, else in ./configs, else in the package; the suffix `.yaml` is optional.

    Raises:
        UserError: no folder has it, or it is not valid YAML.
    """
    folders = [Path(), Path("configs"), shipped_folder("configs")]
    for folder in folders:
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                load_config(path)
                return path
    known = {path.name for folder in folders[1:] for path in folder.glob("*.yaml")}
    raise UserError(f"config {name} is neither here, nor in ./configs, nor in the package; {nearest(name, known)}")


def load_config(path: Path) -> dict[str, Any]:
    """Load a config file.

    Raises:
        UserError: the file is not UTF-8 text, not valid YAML, or holds no keys.
    """
    try:
        content = bounded_yaml.load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"config {path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"config {path}{line} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise UserError(f"config {path} must hold keys such as model: and data:, found {type(content).__name__}")
    if not isinstance(content.get("trainer") or {}, dict):
        raise UserError(f"config {path}: trainer must hold keys such as max_epochs:, found {shown(content['trainer'])}")
    return content


def last_value(configs: list[Path], *keys: str) -> str | None:
    """Return the value of a nested key, of the last config that sets it."""
    last: str | None = None
    for config in configs:
        content: Any = load_config(config)
        for key in keys:
            content = (content or {}).get(key)
        last = content or last
    return last


def merged(earlier: Any, later: Any) -> Any:
    """Merge one config over another, by key; another class drops the arguments of the earlier one.

    >>> merged({"class_path": "PPO", "init_args": {"epochs": 2}}, {"init_args": {"minibatches": 4}})
    {'class_path': 'PPO', 'init_args': {'epochs': 2, 'minibatches': 4}}
    >>> merged({"class_path": "PPO", "init_args": {"epochs": 2}}, {"class_path": "DPO"})
    {'class_path': 'DPO'}
    """
    if not isinstance(earlier, dict) or not isinstance(later, dict):
        return later
    if later.get("class_path", earlier.get("class_path")) != earlier.get("class_path"):
        earlier = {}
    return {**earlier, **{key: merged(earlier.get(key), value) for key, value in later.items()}}

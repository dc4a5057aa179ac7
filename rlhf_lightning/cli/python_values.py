"""Values of Python as a config holds them: plain data, import paths, and names of objects that no config can hold."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lightning import session
from rlhf_lightning.errors import UserError

SPLITS = ("train", "validation", "test", "predict")
REWARDS = ("reward", "rewards", "evaluation_rewards")


def config_value(value: Any, key: str) -> Any:
    """Return a value as a config holds it.

    Args:
        value: plain data; a class; a plug-in; a function as a reward; rows for a split of `data`.
        key: where it goes, `model.reward` for instance.

    Raises:
        UserError: nothing of the kind can go there.
    """
    keys = key.split(".")
    if keys[0] == "data" and keys[-1] in SPLITS and not isinstance(value, str | Path | None):
        return _rows(value)
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: config_value(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [config_value(inner, key) for inner in value]
    if isinstance(value, type):
        return _import_path(value, key)
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args:
        arguments = {name: config_value(inner, f"{key}.{name}") for name, inner in value.keywords.items()}
        return {"class_path": _import_path(value.func, key), "init_args": arguments}
    return _object(value, key)


def _object(value: Any, key: str) -> Any:
    from rlhf_lightning.algorithms.kl_penalty import KLPenalty
    from rlhf_lightning.models.config import LoraOptions, ModelConfig
    from rlhf_lightning.rewards.base import Reward

    if key == "data":
        return _data(value)
    if set(key.split(".")) & set(REWARDS) and callable(value) and not isinstance(value, Reward):
        return {"class_path": "FunctionReward", "init_args": {"function": _function(value)}}
    if key.endswith(".function") and callable(value):
        return _function(value)
    if dataclasses.is_dataclass(value):
        fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value) if item.init}
        plain = {name: config_value(inner, f"{key}.{name}") for name, inner in fields.items()}
        if isinstance(value, KLPenalty | LoraOptions | ModelConfig):  # groups of options, of which there is one class
            return plain
        return {"class_path": _import_path(type(value), key), "init_args": plain}
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        return value.item()
    if type(value).__qualname__ in ("function", "builtin_function_or_method", "method"):
        raise UserError(
            f"{key} is {value!r:.60}; pass a class, its import path, or a dictionary with class_path and init_args"
        )
    return {"class_path": session.class_of(value)}


def _data(value: Any) -> Any:
    from lightning.pytorch import LightningDataModule

    from rlhf_lightning.data.loaders import LoaderData

    if hasattr(value, "batch_size") and hasattr(value, "collate_fn"):
        value = LoaderData(train=value)
    if not isinstance(value, LightningDataModule):
        raise UserError(
            f"data is a {type(value).__name__}; pass rows as data__train=…, or a data module or DataLoader as data=…"
        )
    return {"class_path": session.class_of(value)}


def _rows(value: Any) -> Any:
    from rlhf_lightning.data.objects import check_object, is_rows

    if not is_rows(value):
        return [
            each if isinstance(each, str) else str(each) if isinstance(each, Path) else _rows(each) for each in value
        ]
    check_object(value)
    return session.name_object(value, type(value).__name__)


def _function(value: Any) -> str:
    """The import path of a function that another process could import; else the name of the object."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    importable = module not in (None, "__main__") and getattr(sys.modules.get(str(module)), str(name), None) is value
    return (
        f"{module}.{name}"
        if importable
        else session.name_object(value, getattr(value, "__name__", type(value).__name__))
    )


def _import_path(kind: type, key: str) -> str:
    if "<locals>" in kind.__qualname__:
        raise UserError(
            f"{key} is the class {kind.__name__}, defined inside a function; define it outside, or pass an object of it"
        )
    return f"{kind.__module__}.{kind.__qualname__}"


def objects_in(config: Any, key: str = "") -> list[str]:
    """Return the keys of a config whose values another process does not have.

    >>> objects_in({"data": {"init_args": {"train": "python:DataFrame#1"}}, "model": {"class_path": "__main__.Mine"}})
    ['data.init_args.train', 'model.class_path']
    """
    if isinstance(config, Mapping):
        return [found for name, value in config.items() for found in objects_in(value, f"{key}.{name}".lstrip("."))]
    if isinstance(config, list):
        return [found for value in config for found in objects_in(value, key)]
    text = config if isinstance(config, str) else ""
    here = session.is_object_name(text) or text.startswith((f"{session.__name__}.{session.CLASS}", "__main__."))
    return [key] if here else []


def note_objects(path: Path) -> None:
    """Write into a saved config that objects of Python keep it from being repeated, in one line at its top."""
    import yaml

    text = path.read_text(encoding="utf-8")
    if keys := list(dict.fromkeys(objects_in(yaml.safe_load(text)))):
        line = (
            f"# cannot be repeated from YAML: {', '.join(keys)} came from Python; pass the same to rlhf_lightning.fit"
        )
        path.write_text(f"{line}\n{text}", encoding="utf-8")

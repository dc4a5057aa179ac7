"""Whether two configs describe runs of one kind: the same stage, model and algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning import bounded_yaml

MODELS = ("policy", "model")
"""Keys of a stage that hold its model."""


def is_same_kind(folder: Path, config: dict[str, Any]) -> bool:
    """Compare the config of the run in a folder with a config as given; what the config leaves open fits.

    Args:
        folder: of a run.
        config: without defaults.
    """
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        return True
    try:
        saved = bounded_yaml.load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError):  # also of another program, and damaged or endless
        return False
    return isinstance(saved, dict) and _fits(kind(config), kind(saved))


def kind(config: dict[str, Any]) -> dict[str, Any]:
    """Return what makes the kind of a run: its stage, the class of its algorithm, and the source and the adapter of its model."""
    stage = spread(config.get("model"))
    model = next((found for name in MODELS if isinstance(found := stage.get(name), dict)), {})
    source = {name: model.get(name) for name in ("name_or_path", "config")}
    adapter = spread(model.get("lora")) or None
    return {
        "stage": _name(stage),
        "algorithm": _name(spread(stage.get("algorithm"))),
        "model": {name: value for name, value in source.items() if value is not None},
        "lora": adapter,
    }


def spread(node: Any) -> dict[str, Any]:
    """Return a class of a config as one dictionary of its path and its arguments."""
    if isinstance(node, str):
        return {"class_path": node}
    if not isinstance(node, dict):
        return {}
    found = dict(node.get("init_args") or {})
    for name, value in node.items():
        if name != "init_args":  # of the command line, which spells keys without init_args
            both = isinstance(value, dict) and isinstance(found.get(name), dict | str)
            found[name] = {**spread(found[name]), **spread(value)} if both else value
    return found


def _name(node: dict[str, Any]) -> str | None:
    path = node.get("class_path")
    return str(path).rpartition(".")[2] if path else None


def _fits(given: Any, saved: Any) -> bool:
    """Whether everything that is given is also in what was saved; an adapter is given or there is none."""
    if isinstance(given, dict) and isinstance(saved, dict):
        if (given.get("lora") is None) != (saved.get("lora") is None):
            return False
        return all(_fits(value, saved.get(name)) for name, value in given.items() if value is not None)
    return bool(given == saved)

"""Options have the defaults that the shipped schema tells editors; a changed default changes the runs of every user."""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any

from rlhf_lightning.cli.shipped import SCHEMA

PASSED = "optimizer"
"""What the stage passes to a schedule."""


def test_every_option_has_the_default_of_the_shipped_schema() -> None:
    """In this process; `test_the_shipped_schema_is_current` compares the whole schema."""
    told: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name, definition in json.loads(SCHEMA.read_text())["$defs"].items():
        module, _, own = name.rpartition(".")
        if not module.startswith("rlhf_lightning."):
            continue
        parameters = inspect.signature(getattr(importlib.import_module(module), own)).parameters
        named = {each.name for each in parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        assert named - {PASSED} <= set(definition["properties"]), name
        for option, described in definition["properties"].items():
            if option in parameters and _is_plain(described):
                told[f"{name}.{option}"] = described["default"]
                default = parameters[option].default
                found[f"{name}.{option}"] = list(default) if isinstance(default, tuple) else default
    assert len(told) > 300
    assert found == told


def _is_plain(option: dict[str, Any]) -> bool:
    """Say whether an option has a default that is no plug-in."""
    return "default" in option and not (isinstance(option["default"], dict) and "class_path" in option["default"])

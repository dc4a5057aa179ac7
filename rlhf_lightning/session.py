"""Objects of a Python session, under names that a config can carry: rows, functions and plug-ins that no YAML could hold."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.errors import UserError

PREFIX = "python:"
_OBJECTS: dict[str, Any] = {}


def name_object(value: Any, label: str) -> str:
    """Keep an object for the rest of the process, and give its name; the same object keeps its name.

    >>> name_object(len, "builtins.len") == name_object(len, "builtins.len")
    True
    """
    known = next((name for name, other in _OBJECTS.items() if other is value), None)
    if known is None:
        known = f"{PREFIX}{label}#{len(_OBJECTS) + 1}"
        _OBJECTS[known] = value
    return known


def is_object_name(value: object) -> bool:
    """Whether a value of a config names an object of a Python session."""
    return isinstance(value, str) and value.startswith(PREFIX)


def named_object(value: Any, key: str) -> Any:
    """The object that a config's value names; the value itself where it is no such name.

    Args:
        value: of the config.
        key: where it is in the config, for the message.

    Raises:
        UserError: the object was in another process.
    """
    if not is_object_name(value):
        return value
    if value not in _OBJECTS:
        argument = key.replace(".", "__")
        raise UserError(
            f"{key} is {value!r}, an object of the Python session that wrote this config; it cannot be repeated from YAML: pass "
            f'the object again in Python, rlhf_lightning.fit("config.yaml", {argument}=…), or set {key} to a file or import path'
        )
    return _OBJECTS[value]

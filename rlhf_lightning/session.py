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
        raise UserError(
            f"{key} is {value!r}, an object of the Python session that wrote this config; it cannot be repeated from YAML: pass "
            f"the object again to rlhf_lightning.fit in Python, or set {key} to a file or an import path"
        )
    return _OBJECTS[value]


def class_of(value: Any) -> str:
    """Give the import path of a class whose call returns `value`, for a config that wants a class and its arguments."""

    def new(cls: type) -> Any:
        return value

    def init(self: Any) -> None:
        """Change nothing: the object is made already."""

    name = f"{CLASS}{len(_OBJECTS) + 1}"
    _OBJECTS[name] = value
    globals()[name] = type(name, (type(value),), {"__new__": new, "__init__": init, "__module__": __name__})
    return f"{__name__}.{name}"


CLASS = "_Object"


def __getattr__(name: str) -> Any:
    if name.startswith(CLASS):
        raise UserError(
            f"class_path {__name__}.{name} is an object of the Python session that wrote this config; it cannot be repeated from "
            "YAML: pass the object again in Python, or set a class of your own and its arguments"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

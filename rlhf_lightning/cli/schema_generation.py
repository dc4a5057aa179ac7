"""The JSON schema of configs, from constructor signatures and docstrings; imports torch and Lightning.

`python -m rlhf_lightning.cli.schema_generation` brings the shipped `schema.json` up to date.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jsonargparse import set_parsing_settings
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

import rlhf_lightning.cli.lightning  # noqa: F401  (imports all classes that have a short name)
from rlhf_lightning.cli.plugin_families import PLUGIN_FAMILIES, subclasses

PACKAGES = ("rlhf_lightning", "lightning", "torch")
PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", dict: "object"}
PASSED_BY_POSITION = {"Optimizer": 1, "LRScheduler": 1}
"""Leading parameters that the stage passes itself: the weights, the optimizer."""
BASES = ("Stage", "RolloutStage", "RowData", "FileData", "PolicyGradient")
"""Classes that others derive from; editors do not propose them."""
INTERNAL = ("rlhf_lightning.run.", "rlhf_lightning.cli.")
"""Modules whose callbacks and loggers every run has already."""
PROPOSED = ("Checkpoints",)
ARRAYS = (list, tuple, set, frozenset)
FIRST_SENTENCE = re.compile(r"(.+?\.)(?:\s|$)")
LOGGER_PACKAGES = ("comet_ml", "litlogger", "mlflow", "neptune", "wandb")
"""Packages of Lightning's loggers: what is installed of them does not change the schema."""


def generate(roots: Iterable[str] = ()) -> dict[str, Any]:
    """Generate the schema of all plug-ins that are imported.

    Args:
        roots: top-level modules of further plug-ins, the user's own for example.

    Returns:
        A JSON schema (draft 2020-12). Keywords that begin with `x-` are read by the check before torch is imported.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return _Generator((*PACKAGES, *roots)).schema()


class _Generator:
    """Collects definitions: one for each family of plug-ins, one for each class.

    Args:
        roots: top-level modules whose classes are described.
    """

    def __init__(self, roots: tuple[str, ...]) -> None:
        self.roots = roots
        self.definitions: dict[str, Any] = {}

    def schema(self) -> dict[str, Any]:
        """Describe a whole config."""
        families = {family.__name__: family for family in PLUGIN_FAMILIES}
        for name, base in families.items():
            self.definitions[name] = self._family(name, base)
        properties: dict[str, Any] = {
            "$schema": {"type": "string"},
            "seed_everything": {
                "type": ["boolean", "integer"],
                "default": 0,
                "description": "Seed of all random numbers.",
            },
            "trainer": self._class(Trainer),
            "model": self._type(LightningModule),
            "data": self._type(LightningDataModule),
        }
        for command in ("fit", "validate", "test", "predict"):
            for parameter in get_signature_parameters(Trainer, command):
                if parameter.name not in ("model", "datamodule") and "dataloaders" not in parameter.name:
                    properties.setdefault(parameter.name, self._parameter(parameter, Trainer))
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "A config of rlhf_lightning",
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "$defs": dict(sorted(self.definitions.items())),
            "x-versions": self._versions(),
        }

    def _versions(self) -> dict[str, str]:
        found = {}
        for root in self.roots:
            try:
                found[root] = version(root).partition("+")[0]
            except PackageNotFoundError:  # the user's own modules are compared by content
                continue
        return {root: number for root, number in sorted(found.items()) if root != "rlhf_lightning"}

    # -- classes -------------------------------------------------------------------------------------------------------

    def _family(self, name: str, base: type) -> dict[str, Any]:
        """Describe the two forms in which a config names a class: its name, or its name with arguments."""
        members = sorted(self._members(base), key=lambda member: (member.__name__, member.__module__))
        names = [member.__name__ for member in members]
        proposed, rules = [], []
        for member in members:
            has_short_name = names.count(member.__name__) == 1 and member.__module__.startswith(PACKAGES)
            spelled = ([member.__name__] if has_short_name else []) + import_paths(member)
            if _is_proposed(member):
                proposed += spelled[:2]
            reference = self._class(member, PASSED_BY_POSITION.get(name, 0))
            condition = {"properties": {"class_path": {"enum": spelled}}, "required": ["class_path"]}
            rules.append({"if": condition, "then": {"properties": {"init_args": reference}}})
        known = {"anyOf": [{"enum": proposed}, {"type": "string", "pattern": "[./]"}]}
        with_arguments = {
            "type": "object",
            "properties": {"class_path": known, "init_args": {"type": "object"}, "dict_kwargs": {"type": "object"}},
            "additionalProperties": False,
            "allOf": rules,
        }
        return {"title": name, "anyOf": [known, with_arguments]}

    def _members(self, base: type) -> Iterator[type]:
        for member in dict.fromkeys(subclasses(base)):
            module = sys.modules.get(member.__module__)
            reachable = getattr(module, member.__name__, None) is member
            if reachable and member.__module__.split(".")[0] in self.roots and not member.__name__.startswith("_"):
                yield member

    def _class(self, described: type, skip: int = 0) -> dict[str, Any]:
        """Refer to the definition of a class, which is added if it is missing."""
        name = f"{described.__module__}.{described.__qualname__}"
        if name not in self.definitions:
            self.definitions[name] = {}  # a class may contain itself
            parameters = [
                each for each in get_signature_parameters(described)[skip:] if not _is_passed_on(each, described)
            ]
            self.definitions[name] = {
                "title": described.__name__,
                "description": _first_sentence(described.__doc__),
                "type": "object",
                "properties": {each.name: self._parameter(each, described) for each in parameters},
                "additionalProperties": _passes_on(described),
                "x-modules": sorted(_modules(described)),
            }
        return {"$ref": f"#/$defs/{name}"}

    def _parameter(self, parameter: Any, owner: type) -> dict[str, Any]:
        schema = dict(self._type(parameter.annotation))
        ours = owner.__module__.split(".")[0] not in ("lightning", "torch")
        if text := " ".join((parameter.doc or "").split()):
            schema["description"] = text if ours else _first_sentence(text)
        if _is_json(parameter.default):
            schema["default"] = parameter.default
        return schema

    # -- types ---------------------------------------------------------------------------------------------------------

    def _type(self, annotation: Any) -> dict[str, Any]:
        """Translate an annotation; what is unknown accepts everything."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        kind = origin or annotation
        if kind in (typing.Any, inspect.Parameter.empty):
            return {}
        if kind is typing.Annotated:
            return self._type(arguments[0])
        if kind is typing.Literal:
            return {"enum": list(arguments)}
        if kind in (typing.Union, types.UnionType):
            return _any_of([self._type(argument) for argument in arguments])
        if annotation in PLAIN:
            return {"type": PLAIN[annotation]}
        if kind is collections.abc.Callable:
            returned = self._type(arguments[-1]) if arguments else {}
            return returned if "$ref" in json.dumps(returned) else {}
        return self._of_class(kind, arguments) if isinstance(kind, type) else {}

    def _of_class(self, kind: type, arguments: tuple[Any, ...]) -> dict[str, Any]:
        for family in PLUGIN_FAMILIES:
            if issubclass(kind, family):
                return {"$ref": f"#/$defs/{family.__name__}"}
        if issubclass(kind, collections.abc.Mapping):
            values = self._type(arguments[1]) if len(arguments) == 2 else {}
            return {"type": "object", **({"additionalProperties": values} if values else {})}
        if issubclass(kind, ARRAYS) or kind in (collections.abc.Iterable, collections.abc.Sequence):
            items = self._type(arguments[0]) if arguments else {}
            return {"type": "array", **({"items": items} if items and kind is not tuple else {})}
        if issubclass(kind, os.PathLike):
            return {"type": "string"}
        if dataclasses.is_dataclass(kind) and kind.__module__.split(".")[0] not in ("torch", "lightning"):
            return self._class(kind)
        if kind is object or kind.__module__.split(".")[0] in LOGGER_PACKAGES:
            return {}
        return {"type": ["object", "string"]}  # a class of another kind, or a value with a notation of its own


def import_paths(described: type) -> list[str]:
    """List the dotted paths under which a class is importable, the shortest first."""
    parts = described.__module__.split(".")
    prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return [f"{prefix}.{described.__name__}" for prefix in prefixes if _holds(prefix, described)]


def _holds(module: str, described: type) -> bool:
    return getattr(sys.modules.get(module), described.__name__, None) is described


def _is_proposed(member: type) -> bool:
    internal = member.__module__.startswith(INTERNAL) and member.__name__ not in PROPOSED
    return not (internal or inspect.isabstract(member) or member.__name__ in BASES)


def _passes_on(described: type) -> bool:
    """Return whether a class is a logger that hands further arguments to a package that may be installed or not."""
    kinds = [each.kind for each in inspect.signature(described).parameters.values()]
    return described.__module__.startswith("lightning.pytorch.loggers.") and inspect.Parameter.VAR_KEYWORD in kinds


def _is_passed_on(parameter: Any, described: type) -> bool:
    """Return whether a parameter is one of those: the schema does not depend on what else is installed."""
    return _passes_on(described) and parameter.parent not in described.__mro__


def _modules(described: type) -> set[str]:
    """Name the modules that a signature can come from."""
    skipped = ("builtins", "typing", "abc", "torch", "lightning", "collections", "contextlib")
    return {base.__module__ for base in described.__mro__ if base.__module__.split(".")[0] not in skipped}


def _first_sentence(text: str | None) -> str:
    plain = " ".join((text or "").split())
    plain = re.sub(r":\w+:`~?([^`]*)`", r"\1", plain).replace("``", "`")
    found = FIRST_SENTENCE.match(plain)
    return found.group(1) if found else plain[:200]


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if {} in schemas:
        return {}
    simple: list[str] = []
    for schema in schemas:
        if set(schema) == {"type"}:
            simple += schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    simple = list(dict.fromkeys(simple))
    if "number" in simple and "integer" in simple:
        simple.remove("integer")
    rest = [schema for schema in schemas if set(schema) != {"type"}]
    if simple:
        rest.append({"type": simple if len(simple) > 1 else simple[0]})
    return rest[0] if len(rest) == 1 else {"anyOf": rest}


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    return value is None or isinstance(value, bool | int | str)


def as_text(schema: dict[str, Any]) -> str:
    """Format a schema as JSON with sorted keys, one definition per line."""
    dump = functools.partial(json.dumps, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    rest = {key: value for key, value in schema.items() if key != "$defs"}
    definitions = ",\n".join(f"{dump(name)}:{dump(each)}" for name, each in sorted(schema["$defs"].items()))
    return f'{{"$defs":{{\n{definitions}\n}},\n{dump(rest)[1:]}\n'


if __name__ == "__main__":
    from rlhf_lightning.cli.shipped import SCHEMA

    SCHEMA.write_text(as_text(generate()), encoding="utf-8")

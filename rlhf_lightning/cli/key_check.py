"""The check of a config before torch is imported: keys and classes, against the JSON schema.

The check is silent about what the schema does not describe: values, and classes of other packages. jsonargparse checks those,
and all of this again, a few seconds later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_lightning.cli.known_schema import KnownSchema, Node, is_family, load_schema
from rlhf_lightning.errors import UserError, nearest

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
IMPORTED_LATER = ("function",)
"""Keys whose import path is imported after parsing, so that it brings no class."""
DATA_FILES = (".jsonl", ".csv", ".parquet", ".gz", ".ckpt")
WITHOUT_PLUGINS = ("rlhf_lightning", "torch", "lightning", "bitsandbytes")
"""Packages whose import adds no class to those of the schema."""
UNIQUE_PLACES = {
    "LightningModule": "model",
    "LightningDataModule": "data",
    "Algorithm": "model.algorithm",
    "Generator": "model.generation",
}
"""Families of which a config holds one, and its key."""
USUAL_OPTIMIZERS = ("SGD", "AdamW")


def check_keys(config: dict[str, Any], read: Iterable[Any] | None = None, typed: bool = False) -> None:
    """Refuse a merged config with a key or a class that does not exist.

    Args:
        config: of files, or of files and the command line.
        read: everything that was merged into `config`, also what was replaced, since its classes may be imported.
        typed: whether the fault is on the command line, where keys are spelled without `init_args`.

    Raises:
        UserError: naming the key and the nearest valid one.
    """
    schema = load_schema()
    known = {*WITHOUT_PLUGINS, *schema.own_modules}
    paths = _import_paths(list([config] if read is None else read), typed)
    closed = all(path.split(".")[0] in known or path.rpartition(".")[0] in known for path in paths)
    EarlyCheck(schema, closed, typed).check_top(config)


def _import_paths(node: Any, typed: bool, key: object = "class_path") -> Iterator[str]:
    """Yield what jsonargparse may import or read: class paths, words that may be one, config files inside a config."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _import_paths(value, typed, name)
    elif isinstance(node, str) and key not in IMPORTED_LATER and not node.endswith(DATA_FILES):
        imported = (typed or key == "class_path") and IMPORT_PATH.fullmatch(node)
        if imported or node.endswith((".yaml", ".yml", ".json")) or (node.isidentifier() and os.path.isfile(node)):
            yield node


class EarlyCheck:
    """Walks a config along a schema.

    Args:
        schema: of all plug-ins that are known.
        closed: whether no other module can bring a class with a short name.
        typed: whether messages spell keys without `init_args`.
    """

    def __init__(self, schema: KnownSchema, closed: bool, typed: bool = False) -> None:
        self.schema, self.closed, self.typed = schema, closed, typed

    def check_top(self, config: dict[str, Any]) -> None:
        """Check a whole config."""
        self._check_object(self.schema.top, config, "")

    def check(self, node: Node, value: Any, path: str) -> None:
        """Check a value against the alternatives of its schema, where exactly one can be meant."""
        if isinstance(value, list):
            items = [each["items"] for each in self.schema.alternatives(node) if "items" in each]
            for each in value if len(items) == 1 else ():
                self.check(items[0], each, path)
            return
        kinds = [each for each in self.schema.alternatives(node) if is_family(each)]
        if all(kind is kinds[0] for kind in kinds):  # a union of a base and one of its classes
            kinds = kinds[:1]
        if isinstance(value, str) and len(kinds) == 1:
            self._check_class(kinds[0], value, path)
        elif isinstance(value, dict):
            self._check_mapping(node, kinds, value, path)

    def _check_mapping(self, node: Node, kinds: list[Node], value: dict[str, Any], path: str) -> None:
        name = value.get("class_path")
        if isinstance(name, str) and len(kinds) == 1:
            self._check_class(kinds[0], name, path)
            described = self.schema.members(kinds[0]).get(name)
            given = value.get("init_args")
            if described and isinstance(given, dict):
                self._check_object(described, given, path if self.typed else f"{path}.init_args", kinds[0])
            return
        objects = [each for each in self.schema.alternatives(node) if each.get("type") == "object"]
        if len(objects) != 1 or kinds or "class_path" in value:
            return
        values = objects[0].get("additionalProperties")
        if "properties" in objects[0]:
            self._check_object(objects[0], value, path)
        elif isinstance(values, dict):
            for key, each in value.items():
                self.check(values, each, f"{path}.{key}")

    # -- faults --------------------------------------------------------------------------------------------------------

    def _check_class(self, family: Node, name: str, path: str) -> None:
        if spelled := self.schema.ambiguous(family, name):
            raise UserError(f"{path} is {name}, which several packages have; set {path} to {' or '.join(spelled)}")
        unknown = self.closed and name.isidentifier() and name not in self.schema.members(family)
        if unknown and not os.path.exists(name) and not self.schema.may_have_class(family, name):
            hint = nearest(name, self.schema.proposed(family))
            raise UserError(f"there is no class {name!r} for {path}; {hint}")

    def _check_object(self, described: Node, given: dict[str, Any], path: str, family: Node | None = None) -> None:
        known = described.get("properties", {})
        for key, value in given.items():
            inner = f"{path}.{key}" if path else str(key)
            if key in known:
                self.check(known[key], value, inner)
            elif not self.schema.may_have_key(described, str(key)):
                raise UserError(f"unknown key {inner!r}; {self._hint(described, str(key), family)}")

    def _hint(self, described: Node, key: str, family: Node | None) -> str:
        """Name the place of a key that belongs elsewhere, else the nearest key."""
        known = described.get("properties", {})
        if group := next((name for name, node in known.items() if self._belongs_to(node, key)), None):
            return f"did you mean '{group}.{key}'?"
        near = nearest(key, known)
        if family is not None and (owners := self._owners(family, key)):
            who = f"{', '.join(owners[:-1])} and {owners[-1]} have" if owners[1:] else f"{owners[0]} has"
            return f"{who} it, {described['title']} has not{f'; {near}' if near.startswith('did') else ''}"
        if near.startswith("did") and family is None:
            return near
        for name, place in UNIQUE_PLACES.items():
            other = self.schema.definitions.get(name)
            if other and other is not family and family is not None and self._owners(other, key):
                return f"did you mean '{place}.{key}'?"
        return near

    def _belongs_to(self, node: Node, key: str) -> bool:
        """Say whether a group of options, or the usual optimizers, have a key."""
        for each in self.schema.alternatives(node):
            if is_family(each):
                members = self.schema.members(each) if each["title"] == "Optimizer" else {}
                if any(key in members[name]["properties"] for name in USUAL_OPTIMIZERS if name in members):
                    return True
            elif key in each.get("properties", {}):
                return True
        return False

    def _owners(self, family: Node, key: str) -> list[str]:
        members = self.schema.members(family)
        return sorted(
            name for name in self.schema.proposed(family) if key in members.get(name, {}).get("properties", {})
        )

"""The JSON schema of configs as the check before torch reads it: the shipped one, or that of the user's folder."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.shipped import PACKAGE, SCHEMA, shipped_folder

OWN_SCHEMA = Path("rlhf_lightning.schema.json")
"""Where `schema` writes by default, and where a run looks for the schema of the user's own plug-ins."""
CONSTRUCTOR = re.compile(r"def __init__\((.*?)\) ->", re.DOTALL)
Node = dict[str, Any]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a file that cannot be read, an empty text."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def load_schema() -> KnownSchema:
    """Load the schema of the current folder if it is up to date, else the shipped one."""
    own = _content(OWN_SCHEMA)
    return KnownSchema(own if own and _is_current(own) else _content(SCHEMA) or {})


def _content(path: Path) -> Node | None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def _is_current(own: Node) -> bool:
    """Compare what the schema was made from with what is there now."""
    made_from = own.get("x-made-from")
    if not isinstance(made_from, dict) or made_from.get("shipped") != digest(SCHEMA):
        return False
    same_files = all(digest(Path(name)) == known for name, known in made_from.get("files", {}).items())
    return same_files and all(_version(name) == known for name, known in own.get("x-versions", {}).items())


@functools.cache
def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return ""


class KnownSchema:
    """Looks up definitions, and says whether they still describe the installed code.

    Args:
        content: a schema that `schema_generation` made.
    """

    def __init__(self, content: Node) -> None:
        self.top = content
        self.definitions: Node = content.get("$defs", {})
        self.versions: dict[str, str] = content.get("x-versions", {})
        self.own_modules = set(content.get("x-made-from", {}).get("modules", ()))

    def resolve(self, node: Node) -> Node:
        """Follow a reference."""
        name = node.get("$ref", "").removeprefix("#/$defs/")
        return self.definitions.get(name, {}) if name else node

    def alternatives(self, node: Node) -> Iterator[Node]:
        """Yield the schemas, one of which a value must fit. A family of plug-ins stays whole."""
        node = self.resolve(node)
        if "anyOf" in node and not is_family(node):
            for each in node["anyOf"]:
                yield from self.alternatives(each)
        else:
            yield node

    def members(self, family: Node) -> dict[str, Node]:
        """Map every spelling of the classes of a family to the definition of the class."""
        return {
            spelled: self.resolve(rule["then"]["properties"]["init_args"])
            for rule in family["anyOf"][1]["allOf"]
            for spelled in rule["if"]["properties"]["class_path"]["enum"]
        }

    def proposed(self, family: Node) -> list[str]:
        """List the short names of a family that a user can mean."""
        return [name for name in family["anyOf"][0]["anyOf"][0]["enum"] if "." not in name]

    def ambiguous(self, family: Node, name: str) -> list[str]:
        """List the import paths of a name that several classes of a family share."""
        spelled = self.members(family)
        if name in spelled:
            return []
        return sorted(path for path in spelled if path.endswith(f".{name}"))

    # -- up to date ----------------------------------------------------------------------------------------------------

    def may_have_key(self, described: Node, key: str) -> bool:
        """Say whether the installed code may accept a key that the schema does not list."""
        if described.get("additionalProperties") is True:  # a logger that passes keys on to its package
            return True
        modules = described.get("x-modules", [])
        if not modules and not self._versions_are_known():
            return True
        parameter = re.compile(rf"\b{re.escape(key)}\s*[:=,]")
        field = re.compile(rf"^    {re.escape(key)}\s*:", re.MULTILINE)
        sources = [_source(module) for module in modules if module.startswith("rlhf_lightning.")]
        signatures = [signature for source in sources for signature in CONSTRUCTOR.findall(source)]
        return any(map(field.search, sources)) or any(map(parameter.search, signatures))

    def may_have_class(self, family: Node, name: str) -> bool:
        """Say whether the installed code may have a class that the schema does not list."""
        foreign = any(not described.get("x-modules") for described in self.members(family).values())
        if foreign and not self._versions_are_known():
            return True
        pattern = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
        files = [*PACKAGE.rglob("*.py"), *shipped_folder("callbacks").glob("*.py")]
        return any(pattern.search(path.read_text(encoding="utf-8")) for path in files)

    def _versions_are_known(self) -> bool:
        return all(_version(name) == known for name, known in self.versions.items())


def is_family(node: Node) -> bool:
    """Say whether a definition is a family of plug-ins, and not one class."""
    return "title" in node and "anyOf" in node


def _source(module: str) -> str:
    parts = module.split(".")[1:]
    folder = shipped_folder("callbacks").parent if parts[0] == "callbacks" else PACKAGE
    path = folder.joinpath(*parts).with_suffix(".py")
    return path.read_text(encoding="utf-8") if path.is_file() else ""

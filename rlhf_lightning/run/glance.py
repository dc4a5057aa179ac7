"""What is wrong with a config at a glance, before torch is imported: keys and classes, against the package's own source.

Nothing is said of what the source does not tell: classes of other packages, arguments passed through, values. The command line
checks those, and all of this again, a few seconds later.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
READ = ("stages", "algorithms", "rewards", "data", "playground", "rollouts", "models")
PLUGINS = ("Algorithm", "Reward", "Generation")
"""Bases whose classes are ours, or are named by their import path."""
OTHERS = ("rlhf_lightning", "torch", "lightning", "bitsandbytes")
"""Packages that bring no plug-in of these kinds along."""


def check_keys(config: dict[str, Any]) -> None:
    """Refuse a merged config with a key or a class that does not exist.

    Raises:
        UserError: naming the key and the nearest that there is.
    """
    paths = [part for part in _class_paths(config) if "." in part]
    glance = Glance(closed=all(path.split(".")[0] in OTHERS for path in paths))
    for name in ("model", "data"):
        glance.check(config.get(name), name, set())


def merged(earlier: Any, later: Any) -> Any:
    """One config over another, by key; another class drops the arguments of the one before.

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


def _class_paths(node: Any) -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        if key == "class_path" and isinstance(value, str):
            yield value
        yield from _class_paths(value)


class Glance:
    """The classes of the package as their source has them.

    Args:
        closed: no class can come from elsewhere under a name without its module.
    """

    def __init__(self, closed: bool) -> None:
        self.closed = closed

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """By name."""
        files = [path for name in READ for path in sorted((PACKAGE / name).glob("*.py"))]
        found = [node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
        return {node.name: node for node in found if isinstance(node, ast.ClassDef)}

    def check(self, value: Any, path: str, kinds: set[str]) -> None:
        """A value, where the annotation of its key names `kinds`."""
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            self._check_class(value["class_path"], path, kinds)
            name = value["class_path"]
            if "." not in name or name.startswith("rlhf_lightning."):
                self._check_arguments(name.split(".")[-1], value.get("init_args"), f"{path}.init_args")
        elif isinstance(value, dict) and "dict" in kinds:
            for key, part in value.items():
                self.check(part, f"{path}.{key}", kinds - {"dict"})
        elif isinstance(value, dict) and len(own := kinds & set(self.classes)) == 1:
            self._check_arguments(own.pop(), value, path)

    def _check_class(self, name: str, path: str, kinds: set[str]) -> None:
        bases = kinds & set(PLUGINS)
        if not self.closed or "." in name or not bases or name in self.classes:
            return
        known = {found for found in self.classes if bases & set(self._ancestors(found)) and not found.startswith("_")}
        raise UserError(f"there is no class {name!r} for {path}; {nearest(name, known)}")

    def _check_arguments(self, name: str, given: Any, path: str) -> None:
        known = self._parameters(name)
        if known is None or not isinstance(given, dict):
            return
        for key, value in given.items():
            if key not in known:
                raise UserError(f"unknown key '{path}.{key}'; {nearest(str(key), known)}")
            self.check(value, f"{path}.{key}", known[key])

    def _parameters(self, name: str) -> dict[str, set[str]] | None:
        """The words in the annotation of each parameter; None where the source does not tell."""
        if name not in self.classes:
            return None
        node = self.classes[name]
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                given = [*part.args.args[1:], *part.args.kwonlyargs]
                return None if part.args.kwarg else {each.arg: _words(each.annotation) for each in given}
        found: dict[str, set[str]] = {}
        for base in self._bases(node):
            found |= self._parameters(base) or {}
        if any("dataclass" in _words(decorator) for decorator in node.decorator_list):
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            named = {
                field.target.id: _words(field.annotation) for field in fields if isinstance(field.target, ast.Name)
            }
            found |= {field: words for field, words in named.items() if "ClassVar" not in words}
        return found or None

    def _bases(self, node: ast.ClassDef) -> list[str]:
        return [base.id for base in node.bases if isinstance(base, ast.Name)]

    def _ancestors(self, name: str) -> Iterable[str]:
        for base in self._bases(self.classes[name]) if name in self.classes else ():
            yield base
            yield from self._ancestors(base)


def _words(node: ast.AST | None) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node else set()

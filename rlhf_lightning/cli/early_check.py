"""What is wrong with a config at a glance, before torch is imported: keys and classes, against the package's own source.

Nothing is said of what the source does not tell: classes of other packages, arguments passed through, values. The command line
checks those, and all of this again, a few seconds later.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from rlhf_lightning.cli.functions import is_plain_function
from rlhf_lightning.cli.plugin_files import PACKAGE, shipped_folder, third_party_classes
from rlhf_lightning.errors import UserError, nearest

READ = ("stages", "training", "algorithms", "rewards", "data", "playground", "generation", "models", "run")
CALLABLES = ("OptimizerCallable", "LRSchedulerCallable")
"""What the annotation of a key says whose class is called later."""
LIGHTNING = ("LightningModule", "LightningDataModule", "Callback", "Logger", *CALLABLES)
"""Bases whose classes are ours, Lightning's or torch's, or are named by their import path."""
PLUGINS = ("Algorithm", "Reward", "Generator")
"""Bases whose classes are ours, or are named by their import path."""
INNER = {
    "Resume",
    "Samples",
    "Summary",
    "Curves",
    "Export",
    "Predictions",
    "OutOfMemory",
    "PlainProgress",
    "MetricsFile",
}
INNER |= {"RunConfig", "Stage", "RowData", "FileData"}
"""What every run has or what others derive from: never meant by a name that is a little wrong."""
PLACES = {
    "LightningModule": "model",
    "LightningDataModule": "data",
    "Algorithm": "model.algorithm",
    "Generator": "model.generation",
}
"""Where there is one of a kind in a config."""
OF_OPTIMIZERS = ("lr", "weight_decay", "betas", "momentum", "fused")
FAMILIES = {*PLUGINS, *LIGHTNING}
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
LATER = ("function",)
"""Keys whose import path is imported when all of the config is read."""
FILES = (".jsonl", ".csv", ".parquet", ".gz", ".ckpt")
OTHERS = ("rlhf_lightning", "torch", "lightning", "bitsandbytes")
"""Packages that bring no plug-in of these kinds along."""
KINDS = {
    "model": {"LightningModule"},
    "data": {"LightningDataModule"},
    "trainer.callbacks": {"Callback"},
    "trainer.logger": {"Logger"},
}


def check_keys(config: dict[str, Any], read: Iterable[Any] | None = None, typed: bool = False) -> None:
    """Refuse a merged config with a key or a class that does not exist.

    Args:
        config: of files, or of files and the command line.
        read: all that became this config, for what is replaced may have been imported; by default the config alone.
        typed: a fault is in what was typed, where keys are written without `init_args`.

    Raises:
        UserError: naming the key and the nearest that there is.
    """
    paths = _import_paths(list([config] if read is None else read), typed)
    index = SourceIndex(closed=all(path.split(".")[0] in OTHERS for path in paths), typed=typed)
    trainer = config.get("trainer")
    given = {**config, **{f"trainer.{key}": x for key, x in (trainer if isinstance(trainer, dict) else {}).items()}}
    for name, kinds in KINDS.items():
        index.check(given.get(name), name, kinds)


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


def _import_paths(node: Any, typed: bool, key: object = "class_path") -> Iterator[str]:
    """What may be imported while a config is read: class paths, words of a command line that may be one, configs of a part."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _import_paths(value, typed, name)
    elif isinstance(node, str) and key not in LATER and not node.endswith(FILES):
        imported = (typed or key == "class_path") and IMPORT_PATH.fullmatch(node)
        if imported or node.endswith((".yaml", ".yml", ".json")) or (node.isidentifier() and os.path.isfile(node)):
            yield node


@cache
def _classes() -> dict[str, ast.ClassDef]:
    """By name."""
    folders = [*(PACKAGE / name for name in READ), shipped_folder("callbacks")]
    files = [*(path for folder in folders for path in sorted(folder.glob("*.py"))), PACKAGE / "cli" / "lightning.py"]
    found = [node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
    return {node.name: node for node in found if isinstance(node, ast.ClassDef)}


class SourceIndex:
    """The classes of the package as their source has them.

    Args:
        closed: no class can come from elsewhere under a name without its module.
    """

    def __init__(self, closed: bool, typed: bool = False) -> None:
        self.closed, self.typed, self.classes = closed, typed, _classes()

    def check(self, value: Any, path: str, kinds: set[str]) -> None:
        """A value, where the annotation of its key names `kinds`."""
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            name = value["class_path"]
            self._check_class(name, path, kinds)
            if "." not in name or name.startswith("rlhf_lightning."):
                inner = path if self.typed else f"{path}.init_args"
                self._check_arguments(name.split(".")[-1], value.get("init_args"), inner)
        elif isinstance(value, str) and "dict" not in kinds:
            self._check_class(value, path, kinds)
        elif isinstance(value, list):
            for part in value:
                self.check(part, path, kinds)
        elif isinstance(value, dict) and "dict" in kinds:
            for key, part in value.items():
                self.check(part, f"{path}.{key}", kinds - {"dict"})
        elif isinstance(value, dict) and len(own := kinds & set(self.classes) - FAMILIES) == 1:
            self._check_arguments(own.pop(), value, path)

    def _check_class(self, name: str, path: str, kinds: set[str]) -> None:
        if "Reward" in kinds and is_plain_function(name):
            raise UserError(f"{path} wants a class, and {name} is a function; {self._as_class(name, path)}")
        if name == "ReduceLROnPlateau" and "LRSchedulerCallable" in kinds:  # torch's is called so too
            raise UserError(f"{path}: write lightning.pytorch.cli.{name}, which is told what to monitor")
        families = kinds & FAMILIES
        if not self.closed or not families or not name.isidentifier() or name in self.classes or os.path.exists(name):
            return
        if families & set(LIGHTNING) and name in third_party_classes(""):
            return
        known = {found for found in self.classes if families & set(self._ancestors(found))} - INNER
        for family in families & set(LIGHTNING):
            known |= third_party_classes(family)
        raise UserError(
            f"there is no class {name!r} for {path}; {nearest(name, (each for each in known if each[0] != '_'))}"
        )

    def _as_class(self, function: str, path: str) -> str:
        if self.typed and path == "model.reward":
            return f"write --model.reward FunctionReward --model.reward.function {function}"
        return f"write {{class_path: FunctionReward, init_args: {{function: {function}}}}}"

    def _check_arguments(self, name: str, given: Any, path: str) -> None:
        known = self._parameters(name)
        if known is None or not isinstance(given, dict):
            return
        for key, value in given.items():
            if key not in known:
                raise UserError(f"unknown key '{path}.{key}'; {self._hint(name, str(key), known)}")
            self.check(value, f"{path}.{key}", known[key])

    def _hint(self, name: str, key: str, known: dict[str, set[str]]) -> str:
        """Where an option belongs that a class does not have, and the nearest that it has."""
        groups = ((group, words & set(self.classes) - FAMILIES) for group, words in known.items())
        inner = [group for group, kinds in groups if any(key in (self._parameters(kind) or {}) for kind in kinds)]
        inner += [group for group, words in known.items() if "OptimizerCallable" in words and key in OF_OPTIMIZERS]
        if inner:
            return f"did you mean '{inner[0]}.{key}'?"
        family = FAMILIES & set(self._ancestors(name))
        for base in (*family, *(base for base in PLACES if base not in family)) if family else ():
            owners = sorted(self._owners(base, key))
            if owners and base in family:
                near = nearest(key, known)
                who = f"{', '.join(owners[:-1])} and {owners[-1]} have" if owners[1:] else f"{owners[0]} has"
                more = f"; {near}" if near.startswith("did") else ""
                return f"{who} it, {name} has not{more}"
            if owners and base in PLACES:
                return f"did you mean '{PLACES[base]}.{key}'?"
        return nearest(key, known)

    def _owners(self, base: str, key: str) -> set[str]:
        of_base = (found for found in self.classes if base in self._ancestors(found) and found[0] != "_")
        return {found for found in of_base if key in (self._parameters(found) or {})} - INNER

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

"""The structure of the package: imports go one way, modules stay small, and every package is installed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import runpy
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import setuptools
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import Strategy

import rlhf_lightning.algorithms  # noqa: F401  (which imports every algorithm)
from rlhf_lightning.algorithms.base import Algorithm
from tests.conftest import RUN_TESTS, TESTS

ROOT = TESTS.parent
PACKAGE = ROOT / "rlhf_lightning"
BESIDE = ("callbacks", "configs")
"""Folders at the top of the repository that are installed below the package."""

ROOMS = [
    {"bounded_yaml", "errors", "types", "distributed", "io", "console", "seeding", "session"},
    {"functional"},
    {"models"},
    {"algorithms", "rewards", "generation"},
    {"environments"},
    {"rollouts"},
    {"data", "evaluation"},
    {"playground"},
    {"training"},
    {"stages"},
    {"feedback", "planning"},
    {"run"},
    {"report", "tuning"},
    {"loop"},
    {"cli"},
    {"__main__"},
]
"""A room imports from the rooms above it, and not from its neighbours; the modules of the first room import each other too."""
LAYERS = {name: place for place, names in enumerate(ROOMS) for name in names}
HEAVY = {"lightning", "transformers", "peft", "bitsandbytes", "datasets", "torchmetrics", "matplotlib", "jsonargparse"}

MAX_LINES = 350
MAX_ALGORITHM_LINES = 100
MAX_METHODS = 30
MAX_FUNCTION_LINES = 60
HOOKS = {name for kind in (LightningModule, LightningDataModule, Callback) for name in dir(kind)}
"""Names that Lightning calls, which no class can split up."""


def sources() -> dict[Path, ast.Module]:
    """Return the syntax tree of every file of the package and of `callbacks/`, by its path below the repository."""
    files = [path for folder in (PACKAGE, *(ROOT / name for name in BESIDE)) for path in folder.rglob("*.py")]
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(files)}


SOURCES = sources()


def module_of(path: Path) -> str:
    """Return the name under which a file is imported."""
    parts = path.with_suffix("").parts
    return ".".join(
        part for part in (("rlhf_lightning", *parts) if parts[0] in BESIDE else parts) if part != "__init__"
    )


MODULES = {module_of(path) for path in SOURCES}


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield every module or `module.name` that a file imports, also inside functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield file, room and imported name for every import of the package itself."""
    for path, tree in SOURCES.items():
        if path.parts[0] == PACKAGE.name:
            relative = path.relative_to(PACKAGE.name)
            yield from ((str(relative), relative.parts[0].removesuffix(".py"), name) for name in imported(tree))


def room_of(name: str) -> str | None:
    """Return the room of an imported name; None for one from elsewhere and for the package's version."""
    words = name.split(".")
    return words[1] if words[0] == PACKAGE.name and len(words) > 1 and not words[1].startswith("__v") else None


def test_imports_go_one_way() -> None:
    wrong, seen = [], 0
    for file, room, name in imports():
        target = room_of(name)
        if room == "__init__" or target in (None, "callbacks", room) or file == "playground/build.py":
            continue
        seen += 1
        lowest = room in ROOMS[0] and target in ROOMS[0]
        if not lowest and LAYERS[str(target)] >= LAYERS[room]:
            wrong.append(f"{file} imports {name}")
    assert wrong == []
    assert seen > 50


def test_no_modules_import_each_other() -> None:
    graph = {
        module_of(path): {
            module for name in imported(tree) for module in (name, name.rpartition(".")[0]) if module in MODULES
        }
        for path, tree in SOURCES.items()
    }
    # `from package.module import name` names both; a package that re-exports its modules is no cycle.
    graph = {
        module: {used for used in targets if not _is_package_of(used, module)} for module, targets in graph.items()
    }
    assert sum(map(len, graph.values())) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def _is_package_of(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_algorithms_and_rollouts_do_not_know_each_other() -> None:
    pairs = {(room, room_of(name)) for _, room, name in imports()}
    assert ("rollouts", "algorithms") not in pairs
    assert ("algorithms", "rollouts") not in pairs
    assert ("stages", "rollouts") in pairs


def test_an_algorithm_is_one_short_file_that_no_other_file_names() -> None:
    """Words in docstrings and comments do not count; the top of the package gives some of them a short name."""
    homes: dict[str, Path] = {
        kind.__name__: Path(inspect.getfile(kind)).relative_to(ROOT)
        for kind in _kinds(Algorithm)
        if not inspect.isabstract(kind) and kind.__module__.startswith("rlhf_lightning.algorithms.")
    }
    assert len(homes) > 15
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in homes.values()}
    assert {path: length for path, length in lengths.items() if length >= MAX_ALGORITHM_LINES} == {}
    named = [
        f"{path}: {name}"
        for path, tree in SOURCES.items()
        for name in sorted(set(_identifiers(tree)) & homes.keys())
        if path not in (homes[name], Path("rlhf_lightning/__init__.py"))
    ]
    assert named == []


def _kinds(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield from (kind, *_kinds(kind))


def _identifiers(tree: ast.Module) -> Iterator[str]:
    """Yield names, attributes, what is imported, and whole strings."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.ClassDef(name=name):
                yield name.rpartition(".")[2]
            case ast.Constant(value=str() as text):
                yield text


def test_the_maths_needs_torch_alone() -> None:
    light = [(file, name) for file, room, name in imports() if room in ("types", "functional", "algorithms")]
    assert light
    assert not [(file, name) for file, name in light if name.split(".")[0] in HEAVY]


def test_bitsandbytes_is_imported_in_one_file() -> None:
    users = {file for file, _, name in imports() if name.split(".")[0] == "bitsandbytes"}
    assert users == {"models/quantization.py"}


def _private_names(kinds: Iterable[type]) -> set[str]:
    """Return the private attributes and methods that classes of Lightning define."""
    names: set[str] = set()
    for kind in kinds:
        if kind.__module__.startswith("lightning."):
            names |= set(vars(kind)) | set(re.findall(r"self\.(\w+)\b", inspect.getsource(kind)))
    return {name for name in names if re.match("_[a-z]", name)}


def _uses(tree: ast.AST, names: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", None)
        if name in names:
            yield f"{node.lineno}: {name}"  # type: ignore[attr-defined]


def test_private_attributes_of_lightning_are_read_in_one_file() -> None:
    compat = "rlhf_lightning.training.lightning_compat"
    trees = {module_of(path): tree for path, tree in SOURCES.items()}
    handled = (
        Trainer,
        _FitLoop,
        _TrainingEpochLoop,
        Strategy,
        LightningCLI,
    )  # what the package is handed, not what it extends
    elsewhere = _private_names(kind for each in handled for kind in each.__mro__)
    assert {"_should_accumulate", "_accelerator_connector", "_set_seed"} <= elsewhere  # which lightning_compat reads
    found = []
    for module, tree in trees.items():
        if module == compat:
            continue
        own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        found += [f"{module}:{use}" for use in _uses(tree, elsewhere - own - defined)]
        for node in (each for each in ast.walk(tree) if isinstance(each, ast.ClassDef)):
            kind = getattr(importlib.import_module(module), node.name, None)
            found += [f"{module}:{use}" for use in _uses(node, _private_names(getattr(kind, "__mro__", ())))]
    assert not found


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def test_private_modules_and_classes_of_lightning_are_imported_in_one_file() -> None:
    users = {
        file
        for file, _, name in imports()
        if name.split(".")[0] == "lightning" and any(part.startswith("_") for part in name.split("."))
    }
    assert users == {"training/lightning_compat.py"}


def test_callbacks_are_not_imported_by_the_package() -> None:
    users = {file for file, _, name in imports() if room_of(name) == "callbacks"}
    assert users == {"cli/lightning.py"}  # which makes their short names known


def test_files_are_short() -> None:
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def _definitions(*kinds: Any) -> Iterator[tuple[str, Any]]:
    for path, tree in SOURCES.items():
        yield from ((f"{path}:{node.name}", node) for node in ast.walk(tree) if isinstance(node, kinds))


def test_functions_are_short() -> None:
    lengths = {
        name: node.end_lineno - node.lineno + 1 for name, node in _definitions(ast.FunctionDef, ast.AsyncFunctionDef)
    }
    assert len(lengths) > 500
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


def test_classes_have_few_methods() -> None:
    counts = {
        name: sum(isinstance(item, ast.FunctionDef) and item.name not in HOOKS for item in node.body)
        for name, node in _definitions(ast.ClassDef)
    }
    assert max(counts.values()) > 5
    assert {name: count for name, count in counts.items() if count > MAX_METHODS} == {}


def test_every_folder_with_code_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    folders = {module_of(path / "x.py").rpartition(".")[0] for path in {path.parent for path in SOURCES}}
    assert len(folders) > 10
    assert set(given["packages"]) == folders


def test_what_the_benchmarks_import_from_the_package_is_there() -> None:
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    names = {name for file in files for name in imported(ast.parse(file.read_text())) if name.startswith(PACKAGE.name)}
    assert len(names) > 20
    assert [name for name in sorted(names) if not _is_there(name)] == []


def _is_there(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module or name), attribute) or bool(importlib.util.find_spec(name))


def test_folders_without_unit_tests_exist() -> None:
    assert [name for name in RUN_TESTS if not (TESTS / name).exists()] == []

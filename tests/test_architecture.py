"""Imports go one way, and the light parts stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "rlhf_lightning"

ROOMS = [
    {"errors", "types", "distributed", "io", "console", "seeding", "session"},
    {"functional"},
    {"models"},
    {"algorithms", "rewards", "generation"},
    {"environments"},
    {"rollouts"},
    {"data"},
    {"playground"},
    {"training"},
    {"stages"},
    {"evaluation", "feedback", "planning"},
    {"run"},
    {"cli"},
    {"__main__"},
]
"""Each imports from those above it, and not from its neighbours; the first ones from each other too."""
LAYERS = {name: place for place, names in enumerate(ROOMS) for name in names}
HEAVY = {"lightning", "transformers", "peft", "bitsandbytes", "datasets", "torchmetrics", "matplotlib", "jsonargparse"}


def imports() -> Iterator[tuple[str, str, str]]:
    """(file, its part of the package, what it imports) for every import, also those inside functions."""
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield str(relative), part, node.module
            elif isinstance(node, ast.Import):
                yield from ((str(relative), part, alias.name) for alias in node.names)


def test_imports_go_one_way() -> None:
    seen = 0
    for file, part, module in imports():
        target = module.split(".")[1] if module.startswith("rlhf_lightning.") else None
        if part == "__init__" or target in (None, "callbacks", part) or file == "playground/build.py":
            continue
        seen += 1
        lowest = part in ROOMS[0] and target in ROOMS[0]
        assert lowest or LAYERS[target] < LAYERS[part], f"{file} imports {module}"
    assert seen > 50


def test_algorithms_and_rollouts_do_not_know_each_other() -> None:
    pairs = {(part, module.split(".")[1]) for _, part, module in imports() if module.startswith("rlhf_lightning.")}
    assert ("rollouts", "algorithms") not in pairs
    assert ("algorithms", "rollouts") not in pairs
    assert ("stages", "rollouts") in pairs


def test_the_maths_needs_torch_alone() -> None:
    light = [(file, module) for file, part, module in imports() if part in ("types", "functional", "algorithms")]
    assert light
    assert not [(file, module) for file, module in light if module.split(".")[0] in HEAVY]


def test_bitsandbytes_is_imported_in_one_file() -> None:
    assert {file for file, _, module in imports() if module.split(".")[0] == "bitsandbytes"} == {
        "models/quantization.py"
    }


def test_callbacks_are_not_imported_by_the_package() -> None:
    users = {file for file, _, module in imports() if module.startswith("rlhf_lightning.callbacks")}
    assert users == {"cli/lightning.py"}  # which makes their short names known

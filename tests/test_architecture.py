"""Imports go one way, and the light parts stay light."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "rlhf_lightning"

LAYERS = {
    "errors": 0,
    "types": 0,
    "functional": 1,
    "models": 2,
    "algorithms": 2,
    "rewards": 3,
    "rollouts": 4,
    "data": 4,
    "playground": 5,
    "stages": 6,
    "evaluation": 7,
    "feedback": 8,
    "run": 8,
    "cli": 9,
    "__main__": 10,
}
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
        if file == "run/faults.py":  # names the plug-ins in messages, when one is not found
            continue
        assert LAYERS[target] < LAYERS[part], f"{file} imports {module}"
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
    assert users == {"cli.py"}  # which makes their short names known

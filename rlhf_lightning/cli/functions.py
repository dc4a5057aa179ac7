"""Whether an import path names a function, as the source of the current folder has it; nothing is imported."""

from __future__ import annotations

import ast
import os
from pathlib import Path

SCORES = {"list", "List", "Sequence", "Iterable", "Iterator", "tuple", "float", "int", "bool", "str", "Any", "Tensor"}
"""What a reward function returns; one that returns something else may make a class's object, which a config takes."""


def is_plain_function(path: str) -> bool:
    """Whether `module.name` or `file.py:name` is a function that returns scores, and no class.

    One that is imported there, decorated, defined twice, or says that it returns something else is not judged.
    """
    file, colon, name = path.rpartition(":")
    module, _, name = (file, "", name) if colon else path.rpartition(".")
    place = module if colon else f"{module.replace('.', '/')}.py"
    if not os.path.isfile(place) or os.path.isdir(place.removesuffix(".py")):  # a package goes before a file
        return False
    try:
        body = ast.parse(Path(place).read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError, OSError):
        return False
    named = [node for node in body if getattr(node, "name", None) == name]
    return len(named) == 1 and _returns_scores(named[0])


def _returns_scores(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.decorator_list:
        return False
    if node.returns is None:
        return True
    parts = list(ast.walk(node.returns))
    quoted = any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts)
    return not quoted and {part.id for part in parts if isinstance(part, ast.Name)} <= SCORES

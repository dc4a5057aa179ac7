"""Private attributes of Lightning are used in one file."""

from __future__ import annotations

import ast
from pathlib import Path

import rlhf_lightning
from rlhf_lightning.training import lightning_compat

PACKAGE = Path(rlhf_lightning.__file__).parent
COMPAT = Path(lightning_compat.__file__)


def private_attributes(path: Path) -> set[str]:
    """`x._name`, but not of self, cls, or super()."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if node.attr.startswith("_") and not node.attr.startswith("__")}


def test_no_other_file_uses_what_the_compatibility_file_wraps() -> None:
    wrapped = private_attributes(COMPAT)
    assert {"_trainer", "_should_accumulate", "_data_fetcher", "_batches_that_stepped"} <= wrapped
    users = {path.relative_to(PACKAGE).as_posix(): private_attributes(path) & wrapped for path in PACKAGE.rglob("*.py")}
    users.pop(COMPAT.relative_to(PACKAGE).as_posix())
    assert {file: names for file, names in users.items() if names} == {}

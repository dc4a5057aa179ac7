"""`schema`: the JSON schema of configs, with the user's own plug-ins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.config_files import find_config, load_config
from rlhf_lightning.cli.key_check import IMPORT_PATH
from rlhf_lightning.cli.known_schema import OWN_SCHEMA, digest
from rlhf_lightning.cli.shipped import SCHEMA
from rlhf_lightning.errors import UserError
from rlhf_lightning.io import atomic_write

HELP = "write the JSON schema of configs, your own plug-ins included, for editors and for quick checks"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the modules, the configs and the output file."""
    parser.add_argument("modules", metavar="MODULE", nargs="*", help="a module with plug-ins of your own")
    parser.add_argument(
        "--config",
        metavar="NAME",
        action="append",
        default=[],
        help="a config that names plug-ins of your own; by default every config of this folder and of ./configs",
    )
    parser.add_argument("-o", "--output", type=Path, default=OWN_SCHEMA, help="file to write (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Import the plug-ins of the current folder, then write the schema.

    Raises:
        UserError: a module cannot be imported, or the file cannot be written.
    """
    from rlhf_lightning.cli.lightning import add_current_folder
    from rlhf_lightning.cli.schema_generation import PACKAGES, as_text, generate

    add_current_folder()
    named = dict.fromkeys([*options.modules, *_callbacks(), *_named_modules(options.config)])
    imported = [module for module in named if _import(module, module in options.modules)]
    roots = sorted({module.split(".")[0] for module in imported} - set(PACKAGES))
    schema = generate(roots)
    if roots:
        schema["x-made-from"] = {"shipped": digest(SCHEMA), **_own_modules(roots)}
    text = as_text(schema)
    try:
        atomic_write(options.output, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{options.output} cannot be written: {error.strerror}; pass another file with -o") from error
    print(f"{options.output}: {len(schema['$defs'])} classes, own modules: {', '.join(roots) or 'none'}")
    return 0


def _import(module: str, is_required: bool) -> bool:
    """Import a module; one that a config names may be missing, which is only reported."""
    try:
        import_module(module)
        return True
    except Exception as error:
        fault = f"module {module} cannot be imported: {type(error).__name__}: {error}"
        if is_required:
            raise UserError(fault) from error
        print(f"skipped: {fault}", file=sys.stderr)
        return False


def _callbacks() -> list[str]:
    return [f"callbacks.{path.stem}" for path in sorted(Path("callbacks").glob("*.py")) if path.stem != "__init__"]


def _named_modules(configs: list[str]) -> list[str]:
    """List the modules of the import paths in configs."""
    paths = [find_config(name) for name in configs]
    found: dict[str, None] = {}
    for path in paths or [*sorted(Path().glob("*.yaml")), *sorted(Path("configs").glob("*.yaml"))]:
        try:
            content = load_config(path)
        except UserError:
            if paths:
                raise
            continue  # a YAML file of another program
        found |= dict.fromkeys(import_path.rpartition(".")[0] for import_path in _import_paths(content))
    return list(found)


def _import_paths(node: Any, key: object = None) -> Iterator[str]:
    """Yield class paths, and other values that name something in a module of the current folder."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _import_paths(value, name)
    elif isinstance(node, str) and IMPORT_PATH.fullmatch(node):
        root = node.split(".")[0]
        if key == "class_path" or Path(f"{root}.py").is_file() or Path(root, "__init__.py").is_file():
            yield node


def _own_modules(roots: Iterable[str]) -> dict[str, Any]:
    """Record the imported files of the current folder, so that a later change of them is noticed."""
    here = Path.cwd()
    files: dict[str, str] = {}
    modules: list[str] = []
    for name, module in sorted(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        if name.split(".")[0] == "rlhf_lightning" or not file.is_absolute() or not file.is_relative_to(here):
            continue
        if "site-packages" not in file.parts:
            files[str(file.relative_to(here))] = digest(file)
            modules.append(name)
    return {"files": files, "modules": [*modules, *(root for root in roots if root not in modules)]}

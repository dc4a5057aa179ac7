"""A Python function as reward."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.types import Completions


class FunctionReward(Reward):
    """Call a function of your own with the responses and whatever columns of the data set it names.

    The function, plain or async, takes `responses` (a list of strings), and if it likes `prompts` and any column of the data
    set, by name; it returns one number a response, or None for one that cannot be scored.

    Args:
        function: `module.name`, or `path/to/file.py:name`; the current folder is searched first.
        arguments: further keyword arguments.
    """

    def __init__(self, function: str, arguments: dict[str, Any] | None = None) -> None:
        self.name, self.arguments = function, arguments or {}
        self.function: Callable[..., Any] | None = None

    def check(self) -> None:
        """Import the function."""
        self.function = _imported(self.name)

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """The function's answer, awaited where it is async."""
        function = self.function or _imported(self.name)
        answer = function(**self._chosen(function, completions))
        return asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer

    def _chosen(self, function: Callable[..., Any], completions: Completions) -> dict[str, Any]:
        known = {
            **completions.columns,
            "prompts": completions.prompts,
            "responses": completions.responses,
            **self.arguments,
        }
        parameters = inspect.signature(function).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return known
        for p in parameters:
            if p.default is p.empty and p.name not in known and p.kind is not p.VAR_POSITIONAL:
                raise UserError(
                    f"reward function {self.name} wants {p.name!r}, which is no column of the data; {nearest(p.name, known)}"
                )
        return {p.name: known[p.name] for p in parameters if p.name in known}


async def _awaited(answer: Any) -> Any:
    return await answer


def _imported(path: str) -> Callable[..., Any]:
    file, colon, name = path.rpartition(":")
    if colon:
        module = _module_of(Path(file))
    else:
        place, _, name = path.rpartition(".")
        if not place:
            raise UserError(f"reward function {path!r} names no module; write module.name or path/to/file.py:name")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UserError(
                f"reward function {path}: there is no module {error.name!r} in the current folder or installed"
            ) from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"reward function {path}: {module.__name__} has no function {name!r}; {nearest(name, names)}")
    return function


def _module_of(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"reward function: the file {file} is not there")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

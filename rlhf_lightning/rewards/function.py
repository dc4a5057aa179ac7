"""A Python function as reward."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.retry import RetryPolicy, short_description
from rlhf_lightning.session import named_object
from rlhf_lightning.types import Completions


class FunctionReward(Reward):
    """Call a function of your own with the responses and whatever columns of the data set it names.

    The function, plain or async, takes `responses` (a list of strings), and if it likes `prompts` and any column of the data
    set, by name; it returns one number a response, or None for one that cannot be scored.

    With a `timeout` it is called in a thread of its own. A plain function that takes longer cannot be stopped: its thread is
    abandoned and goes on (as a daemon, which ends with the process), and a retry runs beside it. An async one is cancelled.

    Args:
        function: `module.name`, or `path/to/file.py:name`; the current folder is searched first. In Python also the function
            itself, or any other callable.
        arguments: further keyword arguments.
        timeout: seconds for one call; null for no limit.
        retries: further calls after one that took too long or raised an OSError such as ConnectionError; any other error
            stops the run at once.
        backoff: seconds before the first retry, doubled before each further one, up to a minute.
    """

    scores_while_generating = True

    def __init__(
        self,
        function: str | Callable[..., Any],
        arguments: dict[str, Any] | None = None,
        timeout: float | None = None,
        retries: int = 0,
        backoff: float = 2.0,
    ) -> None:
        function = named_object(function, "FunctionReward.function")
        self.by_path = isinstance(function, str)
        if not self.by_path and not callable(function):
            raise UserError(
                f"FunctionReward.function is {function!r:.60}; set it to an import path, or pass a callable"
            )
        self.function: Callable[..., Any] | None = None if isinstance(function, str) else function
        self.name, self.arguments = function if isinstance(function, str) else callable_name(function), arguments or {}
        self.patience = RetryPolicy(f"reward FunctionReward {self.name}", timeout, retries, backoff)

    def check(self) -> None:
        """Import the function, which takes what it will be given.

        Raises:
            UserError: it cannot be imported, or has no parameter of an argument's name.
        """
        self.function = _imported(self.name) if self.by_path else self.function
        assert self.function is not None
        parameters = _parameters(self.function)
        for name in self.arguments if parameters else ():
            if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise UserError(
                    f"FunctionReward.arguments names {name!r}, which is no parameter of {self.name}; "
                    f"{nearest(name, parameters)}"
                )

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Every parameter without a default is a column of the rows, an argument, or what every function is given."""
        known = {*columns, "prompts", "responses", *self.arguments}
        for p in _parameters(self.function or _imported(self.name)).values():
            if p.default is p.empty and p.name not in known and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise UserError(
                    f"reward function {self.name} wants {p.name!r}, which is no column of the {where}; "
                    f"{nearest(p.name, known)}"
                )

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """The function's answer, awaited where it is async."""
        function = self.function or _imported(self.name)
        chosen = self._chosen(function, completions)
        return self.patience.ask(lambda: self._answer(function(**chosen)))

    def _answer(self, answer: Any) -> Any:
        if inspect.isawaitable(answer):
            return _run_async(_awaited(answer, self.patience.own_limit))
        return list(answer) if inspect.isgenerator(answer) else answer  # within the time limit

    def _chosen(self, function: Callable[..., Any], completions: Completions) -> dict[str, Any]:
        given = {**completions.columns, "prompts": completions.prompts, "responses": completions.responses}
        known = {**{name: list(values) for name, values in given.items()}, **self.arguments}  # to change as it likes
        self.check_columns(completions.columns, "data")
        parameters = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return known
        return {name: known[name] for name in parameters if name in known}


def callable_name(function: Any) -> str:
    """What messages call a callable: its qualified name, or its type's.

    >>> callable_name(len), callable_name(lambda responses: [0])
    ('builtins.len', 'rlhf_lightning.rewards.function.<lambda>')
    """
    function = getattr(function, "func", function)  # of a functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def as_reward(reward: Any) -> Any:
    """A reward as it is given; any other callable as a `FunctionReward`."""
    plain = callable(reward) and not isinstance(reward, Reward | type)
    return FunctionReward(reward) if plain else reward


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """By name; none of a function that does not tell, as some that are built in."""
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {}


def _run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end; in a thread of its own where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def _awaited(answer: Awaitable[Any], limit: float | None) -> Any:
    return await asyncio.wait_for(answer, limit)


def _imported(path: str) -> Callable[..., Any]:
    file, colon, name = path.rpartition(":")
    place, _, name = (file, "", name) if colon else path.rpartition(".")
    if not place:
        raise UserError(f"reward function {path!r} names no module; write module.name or path/to/file.py:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = _module_of(Path(file).expanduser()) if colon else importlib.import_module(place)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"reward function {path}: there is no module {error.name!r} in the current folder or installed"
        ) from error
    except SyntaxError as error:
        raise UserError(f"reward function {path}: {error.filename}:{error.lineno} is no Python: {error.msg}") from error
    except Exception as error:  # whatever the module does while it is imported
        raise UserError(f"reward function {path} cannot be imported: {short_description(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"reward function {path}: {module.__name__} has no function {name!r}; {nearest(name, names)}")
    return function


def _module_of(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"reward function: the file {file} is not there")
    spec = importlib.util.spec_from_file_location(str(file), file)
    if spec is None or spec.loader is None:
        raise UserError(f"reward function: {file} is no Python file, which ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module

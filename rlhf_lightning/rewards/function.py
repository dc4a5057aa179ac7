"""A Python function as reward."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, nearest, shown
from rlhf_lightning.rewards.arguments import ALWAYS, BY_NAME
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rewards.retry_and_timeout import RetryPolicy, short_description
from rlhf_lightning.session import named_object
from rlhf_lightning.types import Completions


class FunctionReward(Reward):
    """Call your own function with what its parameters name: the responses in several forms, and columns of the data set.

    The function, plain or async, takes any of these lists, one value per response:

    - `responses`: the text as generated, with special tokens and white space, without the special token that ended it;
    - `raw_responses`: the same with that token; `plain_responses`: without special tokens and white space at both ends;
    - `token_ids`: the generated ids, the stop token included; `truncated`: whether the response ended without one;
    - `messages`: the prompt's messages with the response as the assistant's; a prompt that is text is the user's message;
    - `prompts`: the prompt's text as the policy read it; and any column of the data set.

    It returns one number per response as a list, a NumPy array or a tensor. None or NaN is a response that cannot be scored.
    `RewardOutput` adds components. In a `StepReward` it may take `steps`, the texts of the steps of each response, and returns
    a list of numbers per response.

    With a `timeout` the function runs in another thread. Python cannot stop a plain function that takes longer: its daemon
    thread continues until the process ends, and a retry runs beside it. An async function is cancelled.

    Args:
        function: `module.name` or `path/to/file.py:name`, first looked up in the current folder. In Python also the function
            itself, or any other callable.
        arguments: further keyword arguments.
        timeout: seconds for one call; null for no limit.
        retries: further calls after a timeout or an OSError such as ConnectionError; any other error stops the run at once.
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
                f"FunctionReward.function is {shown(function, 60)}; set it to an import path, or pass a callable"
            )
        self.function: Callable[..., Any] | None = None if isinstance(function, str) else function
        self.name, self.arguments = function if isinstance(function, str) else callable_name(function), arguments or {}
        self.retry_policy = RetryPolicy(f"reward FunctionReward {self.name}", timeout, retries, backoff)

    def check(self) -> None:
        """Import the function, and check that its parameters include all of `arguments`.

        Raises:
            UserError: the import fails, or a parameter is missing.
        """
        self.function = _import(self.name) if self.by_path else self.function
        assert self.function is not None
        parameters = _parameters(self.function)
        for name in self.arguments if parameters else ():
            if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise UserError(
                    f"FunctionReward.arguments has the key {name!r}, which is no parameter of {self.name}; "
                    f"{nearest(name, parameters)}"
                )

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Check that each parameter has one meaning, and that one without a default has a value.

        Raises:
            UserError: a parameter is neither a column, an argument nor made of the responses; or it is two of them.
        """
        available = {*columns, *ALWAYS, *BY_NAME, *self.arguments}
        for p in _parameters(self.function or _import(self.name)).values():
            if p.name in BY_NAME and p.name in columns and p.name not in self.arguments:
                raise UserError(
                    f"reward function {self.name} has the parameter {p.name!r}, which FunctionReward makes of the responses, and "
                    f"the {where} has a column of that name; rename the column with data.columns or in the file"
                )
            if p.name == "steps" and not self.per_step and p.name not in {*columns, *self.arguments}:
                raise UserError(
                    f"reward function {self.name} has the parameter 'steps', and responses are split in a StepReward alone; "
                    "wrap it in StepReward"
                )
            if p.default is p.empty and p.name not in available and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise UserError(
                    f"reward function {self.name} has the parameter {p.name!r}, which is no column of the {where}; "
                    f"{nearest(p.name, available)}"
                )

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the columns that are parameters of the function; all of them where it takes any keyword."""
        parameters = _parameters(self.function or _import(self.name))
        takes_all = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return columns if takes_all else [name for name in columns if name in parameters]

    def __call__(self, completions: Completions) -> Any:
        """Call the function under the retry policy, and wait for its result if it is async."""
        function = self.function or _import(self.name)
        arguments = self._keyword_arguments(function, completions)
        return self.retry_policy.call(lambda: self._result(function(**arguments)))

    def _result(self, result: Any) -> Any:
        if inspect.isawaitable(result):
            return _run_async(_wait_for(result, self.retry_policy.inner_timeout))
        return list(result) if inspect.isgenerator(result) else result  # a generator runs within the time limit

    def _keyword_arguments(self, function: Callable[..., Any], completions: Completions) -> dict[str, Any]:
        self.check_columns(completions.columns, "data")
        parameters = inspect.signature(function).parameters
        available = {
            name: list(values) for name, values in completions.columns.items()
        }  # which the function may change
        available |= {name: make(completions) for name, make in ALWAYS.items()}
        available |= {name: make(completions) for name, make in BY_NAME.items() if name in parameters}
        available |= self.arguments
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return available
        return {name: available[name] for name in parameters if name in available}


def callable_name(function: Any) -> str:
    """Return the name of a callable for messages: its qualified name, or that of its type.

    >>> callable_name(len), callable_name(lambda responses: [0])
    ('builtins.len', 'rlhf_lightning.rewards.function.<lambda>')
    """
    function = getattr(function, "func", function)  # of a functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def as_reward(reward: Any) -> Any:
    """Return a reward as it is, and any other callable as a `FunctionReward`."""
    plain = callable(reward) and not isinstance(reward, Reward | type)
    return FunctionReward(reward) if plain else reward


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters by name; empty for a built-in function without a signature."""
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


async def _wait_for(result: Awaitable[Any], timeout: float | None) -> Any:
    return await asyncio.wait_for(result, timeout)


def _import(path: str) -> Callable[..., Any]:
    file, colon, name = path.rpartition(":")
    module_path, _, name = (file, "", name) if colon else path.rpartition(".")
    if not module_path:
        raise UserError(
            f"FunctionReward.function is {path!r}, which names no module; set it to module.name or path/to/file.py:name"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = _load_file(Path(file).expanduser()) if colon else importlib.import_module(module_path)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"reward function {path}: there is no module {error.name!r} in the current folder or installed"
        ) from error
    except SyntaxError as error:
        raise UserError(
            f"reward function {path}: {error.filename}:{error.lineno} is not valid Python: {error.msg}"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise any error while it is imported, or exit
        raise UserError(f"reward function {path} cannot be imported: {short_description(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"reward function {path}: {module.__name__} has no function {name!r}; {nearest(name, names)}")
    return function


def _load_file(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"reward function: there is no file {file}")
    spec = importlib.util.spec_from_file_location(str(file), file)
    if spec is None or spec.loader is None:
        raise UserError(f"reward function: {file} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module

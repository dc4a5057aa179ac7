"""`rlhf_lightning.fit`: a run in this process, from a script or a notebook."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.cli.failures import user_error
from rlhf_lightning.cli.python_values import config_value
from rlhf_lightning.cli.reading import build_and_run
from rlhf_lightning.errors import UserError, text_of
from rlhf_lightning.run.folder import FOLDER_OF_RUN
from rlhf_lightning.run.results import Run

Config = str | Path | Mapping[str, Any]
ENVIRONMENT = (FOLDER_OF_RUN, "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)


def fit(config: Config | Sequence[Config], folder: str | Path | None = None, **overrides: Any) -> Run:
    """Train as `python -m rlhf_lightning fit` does, in this process.

    Args:
        config: name of a config, a dictionary in its place, or several of these, where later ones overlay earlier ones.
        folder: where the run writes; by default `runs/<config>/<time>`.
        overrides: further keys of the config, with two underscores for a dot: `model__algorithm="DPO"`,
            `trainer__max_steps=100`. `data__train` takes a DataFrame, a `datasets.Dataset` or a list of dictionaries,
            `model__reward` any callable, and every plug-in's key an object.

    Returns:
        The run: its folder, metrics, samples, curves and export.

    Raises:
        UserError: an argument, the config or the data is wrong; nothing raises SystemExit.
    """
    if folder is not None:
        overrides["trainer__default_root_dir"] = Path(folder)
    with tempfile.TemporaryDirectory() as scratch, _as_before():
        try:
            with Arguments.of([*_command(config, Path(scratch)), *_words(overrides)]).claimed() as arguments:
                _run(arguments)
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise UserError(f"the run was ended with status {end.code}") from end
        except Exception as error:
            fault = user_error(error)
            if fault is None:
                raise
            chain = error if os.environ.get("RLHF_LIGHTNING_DEBUG") == "1" else None
            raise UserError(text_of(fault)) from chain
    assert arguments.folder is not None
    return Run(arguments.folder)


def _run(arguments: Arguments) -> None:
    os.environ[FOLDER_OF_RUN] = str(arguments.folder)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"run: {arguments.folder}", flush=True)
    build_and_run(arguments)


def _command(config: Config | Sequence[Config], scratch: Path) -> list[str]:
    configs = list(config) if isinstance(config, list | tuple) else [config]
    words = ["fit"]
    for number, each in enumerate(configs):
        if isinstance(each, Mapping):
            path = scratch / ("python.yaml" if not number else f"python-{number}.yaml")
            path.write_text(
                json.dumps({key: config_value(value, key) for key, value in each.items()}), encoding="utf-8"
            )
            each = path
        elif not isinstance(each, str | Path):
            raise UserError(f"fit takes the name of a config or a dictionary, found {type(each).__name__} {each!r:.60}")
        words += ["--config", str(each)]
    return words


def _words(overrides: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in overrides.items():
        key = name.replace("__", ".")
        found = config_value(value, key)
        words.append(f"--{key}={found if isinstance(found, str) else json.dumps(found)}")
    return words


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore what a run changes in the process around it: random states, warnings, log levels, environment."""
    from rlhf_lightning.training.random_states import random_states, set_random_states

    states, levels = random_states(), {name: logging.getLogger(name).level for name in LOGGERS}
    environment = {name: os.environ.get(name) for name in ENVIRONMENT}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        set_random_states(states)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

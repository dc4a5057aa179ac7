"""Reading a config apart from building what it describes; torch is imported only after the early check."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.cli.failures import no_exit
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.folder import FOLDER_OF_RUN, is_first_process
from rlhf_lightning.run.signals import NOTED

if TYPE_CHECKING:
    from rlhf_lightning.cli.lightning import ParsedCLI


@dataclass(frozen=True)
class Config:
    """A config that was read and checked.

    Attributes:
        subcommand: fit, validate, test or predict.
        values: every key with its typed value or default; a class is a dictionary of `class_path` and `init_args`.
        parsed: the parsed command line, which `build` uses.
    """

    subcommand: str
    values: dict[str, Any]
    parsed: ParsedCLI


def read(words: Sequence[str]) -> Config:
    """Read a command line: find the configs, overlay them, check keys, classes and types.

    No class is made, no folder is created, and nothing is printed. Modules of the user's plug-ins are imported.

    Args:
        words: for example `["fit", "--config", "ppo.yaml", "--data.batch_size", "8"]`.

    Raises:
        UserError: a config is missing, or a key, a class or a value is wrong.
    """
    return _parse(Arguments.find(words))


def build(config: Config) -> tuple[Any, Any, Any]:
    """Make what a config describes.

    Returns:
        The stage, the data module and the trainer.

    Raises:
        UserError: a value does not suit its class.
    """
    with no_exit():
        config.parsed.build()
    return config.parsed.model, config.parsed.datamodule, config.parsed.trainer


def build_without_trainer(config: Config) -> tuple[Any, Any]:
    """Make the stage and the data module that a config describes; its trainer may need devices that this machine lacks.

    Raises:
        UserError: a value does not suit its class.
    """
    with no_exit():
        config.parsed.build(trainer=False)
    return config.parsed.model, config.parsed.datamodule


def run(words: Sequence[str]) -> None:
    """Run a subcommand between two lines that name its folder.

    Raises:
        UserError: something that the user can fix.
    """
    with Arguments.of(words).claimed() as arguments:
        is_named = arguments.folder is not None and is_first_process()
        if is_named:
            os.environ[FOLDER_OF_RUN] = str(arguments.folder)
            print(f"run: {arguments.folder}", flush=True)
        build_and_run(arguments)
        if is_named:
            print(f"run: {arguments.folder}", flush=True)


def _parse(arguments: Arguments) -> Config:
    from rlhf_lightning.cli.lightning import parse

    NOTED.check()  # imports take seconds, and may swallow an interruption
    with no_exit():  # in a module that a config names
        parsed = parse(arguments.words)
    NOTED.check()
    subcommand = arguments.words[0]
    return Config(subcommand, parsed.config[subcommand].as_dict(), parsed)


def build_and_run(arguments: Arguments) -> None:
    """Run a subcommand.

    Raises:
        UserError: something that the user can fix.
    """
    config = _parse(arguments)
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from rlhf_lightning.run.monitors import readable_late_error

    try:
        build(config)
        resumed = config.values.get("ckpt_path")
        if config.subcommand == "fit" and resumed and Path(resumed).exists():
            config.parsed.run_options.resume(
                Path(resumed), arguments.allowed, plain=config.values.get("weights_only") is not False
            )
        with no_exit():
            config.parsed.run()
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        if (line := readable_late_error(error)) is None:
            raise
        raise UserError(line) from error

"""Lightning's command line over stages, algorithms, rewards and data modules, its errors in one line each."""

from __future__ import annotations

import importlib
import json
import logging
import os
import pkgutil
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")

import yaml
from jsonargparse import Namespace, set_loader, set_parsing_settings
from jsonargparse._loaders_dumpers import yaml_load
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import rlhf_lightning.algorithms
import rlhf_lightning.callbacks
import rlhf_lightning.data
import rlhf_lightning.generation
import rlhf_lightning.playground
import rlhf_lightning.rewards
import rlhf_lightning.run.strategies
import rlhf_lightning.stages
import rlhf_lightning.training.schedules
from rlhf_lightning import bounded_yaml
from rlhf_lightning.cli.failures import ParserEnd, raised_by, user_error
from rlhf_lightning.cli.jsonargparse_errors import one_line_error
from rlhf_lightning.cli.python_values import note_objects
from rlhf_lightning.errors import UserError, nearest, text_of
from rlhf_lightning.io import atomic_write
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints
from rlhf_lightning.run.checkpoints import Checkpoints
from rlhf_lightning.run.curves import Curves
from rlhf_lightning.run.ending import Ending
from rlhf_lightning.run.export import Export
from rlhf_lightning.run.metrics_csv import MetricsFile
from rlhf_lightning.run.model_card import ModelCard
from rlhf_lightning.run.monitors import MonitorCheck
from rlhf_lightning.run.out_of_memory import OutOfMemory
from rlhf_lightning.run.predictions import Predictions
from rlhf_lightning.run.progress import Progress
from rlhf_lightning.run.run_options import RunOptions
from rlhf_lightning.run.samples import Samples
from rlhf_lightning.run.summary import Resume, Summary
from rlhf_lightning.run.threads import Threads
from rlhf_lightning.training.lightning_compat import DeferredCLI

for _module in pkgutil.iter_modules(rlhf_lightning.callbacks.__path__):  # registers their short names
    importlib.import_module(f"rlhf_lightning.callbacks.{_module.name}")

NOISE = (
    ".*LightningCLI.s args parameter.*",
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*LeafSpec.*",
    ".*training_step` returned `None`.*",
    ".*isinstance.treespec.*",
    ".*was configured so validation will run.*",
    ".*you specified a `?shuffle.*",
    ".*The number of training batches.*",
    ".*srun.*",
    ".*GPU available but not used.*",
    ".*lr_scheduler.step.*",
    ".*model that are in eval mode.*",
    ".*in eval mode at the start of training.*",
    ".*sync_dist=True.*",  # metrics are reduced over all ranks before they are logged
)
"""Warnings of Lightning and torch that tell a user of this library nothing."""

NOISY_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)

TRAINER_DEFAULTS = {
    "max_epochs": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "devices": 1,
}


STOP_OPTIONS = ("callbacks", "max_time", "min_epochs", "min_steps")
"""Options of the trainer that can stop a run early."""


def _load_value(text: str) -> Any:
    """Read a value or a file as jsonargparse does, within the limits of all YAML here."""
    bounded_yaml.check(text)
    try:
        return yaml_load(text)
    except (ValueError, OverflowError) as error:  # a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from error


set_loader("yaml", _load_value, (yaml.YAMLError,))


class Parser(LightningArgumentParser):
    """Raises errors instead of printing them, and refuses abbreviated keys, which are mostly typing errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Turn jsonargparse's report into one line.

        Raises:
            UserError: always.
        """
        raise UserError(one_line_error(self, message)) from ex

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after help or a printed config, told apart from an exit of the user's code."""
        if message:
            sys.stderr.write(message)
        raise ParserEnd(status)


class RunConfig(SaveConfigCallback):
    """Write `config.yaml`, which repeats the run in another folder."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, as_saved(config), **{**kwargs, "overwrite": True, "save_to_log_dir": False})

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Write, except for training: its set-up may fail, and the folder may hold an earlier run."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Write the config once the set-up of training has succeeded."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Write the config, unless this run only measures and the folder has one."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if stage == "fit" or not path.exists():
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)
            note_objects(path)
            options = next((each for each in trainer.callbacks if isinstance(each, RunOptions)), None)
            if options is not None and options.note:
                atomic_write(path, lambda partial: partial.write_text(options.note + path.read_text()))


class CLI(DeferredCLI):
    """LightningCLI with the project's defaults, and with the loggers and callbacks of every run."""

    words: list[str] | None = None
    """Of the command line, where there is one."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add nothing: optimizer and scheduler are arguments of the stage."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make a trainer with the run's logger and callbacks beside the user's.

        Raises:
            UserError: Lightning refuses an option.
        """
        given = self.trainer_options()
        _check_strategy(given.get("strategy"))
        folder = Path(given["default_root_dir"] or ".")  # of a subclass with a command line of its own
        loggers = [] if isinstance(given.get("logger"), bool) else _as_list(given.get("logger"))
        callbacks, plugins = _as_list(given.get("callbacks")), _as_list(given.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [AtomicCheckpoints(), *plugins]
        if given.get("accelerator") == "auto" and MPSAccelerator.is_available():
            kwargs["accelerator"] = "cpu"  # the stages do not support Apple's MPS, which Lightning would choose
        kwargs["logger"] = [MetricsFile(folder, keep=self.subcommand != "fit"), *loggers]
        kwargs["plugins"] = plugins
        kwargs["callbacks"] = [
            *self._first_callbacks(),
            *callbacks,
            *_callbacks_of_a_run(callbacks, given),
            ModelCard(self.words),
        ]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error

    def _first_callbacks(self) -> list[Callback]:
        """Make the callbacks that act before those of the user."""
        config = plain(self.config.get(self.subcommand, self.config))
        config["ckpt_path"] = config["trainer"]["default_root_dir"] = None  # a run may move
        config.pop("config", None)  # files whose options are in the config: no option of its own
        stop_options = json.dumps({name: config["trainer"].get(name) for name in STOP_OPTIONS}, sort_keys=True)
        self.run_options = RunOptions(config)
        return [MonitorCheck(), Ending(stop_options), self.run_options]


def as_saved(config: Any) -> Any:
    """Return what `config.yaml` holds of the options of a run."""
    config = _without_enums(config.clone())
    config["trainer"]["default_root_dir"] = None
    if "ckpt_path" in config:
        config["ckpt_path"] = None
    return config


def plain(value: Any) -> Any:
    """Return a value without objects, as JSON holds it."""
    return json.loads(json.dumps(value, default=lambda each: each.as_dict() if hasattr(each, "as_dict") else str(each)))


def _without_enums(value: Any) -> Any:
    """Replace names of an enumeration by their text, such as the interval of `Timer`, which jsonargparse does not save."""
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value
    if isinstance(value, list):
        return [_without_enums(each) for each in value]
    if isinstance(value, Namespace | dict):
        for name, each in vars(value).items() if isinstance(value, Namespace) else value.items():
            value[name] = _without_enums(each)
    return value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _check_strategy(strategy: Any) -> None:
    known = ("auto", *StrategyRegistry.available_strategies())
    if isinstance(strategy, str) and strategy.lower() not in known:
        raise UserError(f"trainer.strategy is {strategy!r}, which is unknown; {nearest(strategy, known)}")


def _callbacks_of_a_run(users: list[Callback], given: Any) -> list[Callback]:
    """List the callbacks that every run has, without progress or checkpoints where the config turns them off."""
    callbacks: list[Callback] = [
        Threads(), Resume(), Samples(), Summary(), Curves(), Export(), Predictions(), OutOfMemory()
    ]  # fmt: skip
    if given.get("enable_progress_bar") is not False and not any(isinstance(each, ProgressBar) for each in users):
        callbacks.append(Progress())
    if given.get("enable_checkpointing") is not False and not any(isinstance(each, Checkpoints) for each in users):
        callbacks.append(Checkpoints())
    return callbacks


class ParsedCLI(CLI):
    """Only parses when it is constructed; classes are made by `build`, and the subcommand is run by `run`."""

    is_building = False
    has_trainer = True

    def __init__(self, *args: Any, asked: str, **kwargs: Any) -> None:
        self.asked, self.words = asked, kwargs.get("args")
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in LightningCLI
        """Define the subcommand that was asked for alone: each one's parser takes a tenth of a second to make."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name == self.asked}

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make the trainer, unless `build` was asked for none."""
        return super().instantiate_trainer(**kwargs) if self.has_trainer else None

    def build(self, trainer: bool = True) -> None:
        """Seed all random numbers, then make the stage, the data module and the trainer.

        Args:
            trainer: False makes no trainer, whose options may need devices that this machine lacks.
        """
        self.is_building, self.has_trainer = True, trainer
        self.seed()
        try:
            self.instantiate_classes()
        except (ValueError, TypeError) as error:
            if user_error(error) is not None or not raised_by(error, "jsonargparse"):
                raise
            raise UserError(one_line_error(self.parser, str(error))) from error

    def run(self) -> None:
        """Run the subcommand."""
        self.run_subcommand()


def parse(words: list[str]) -> ParsedCLI:
    """Parse the words of a command line to typed values; classes of the current folder are found.

    Raises:
        UserError: a key, a class or a value is wrong.
    """
    _silence()
    add_current_folder()
    if any(word.partition("=")[0].endswith(".help") for word in words):  # reading sources takes a second
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        return ParsedCLI(
            LightningModule,
            LightningDataModule,
            asked=words[0],
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            parser_class=Parser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults=TRAINER_DEFAULTS,
            args=words,
        )
    except (UserError, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # of jsonargparse, or of a module of the user's that a config names
        if user_error(error) is not None:
            raise
        raise UserError(f"the config cannot be read: {type(error).__name__}: {text_of(error)}") from error


def add_current_folder() -> None:
    """Make the modules of the current folder importable, as `python script.py` would."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _silence() -> None:
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)

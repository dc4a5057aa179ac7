"""Lightning's command line over stages, algorithms, rewards and data modules, its errors in one line each."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import rlhf_lightning.algorithms
import rlhf_lightning.callbacks
import rlhf_lightning.data
import rlhf_lightning.generation.local
import rlhf_lightning.playground
import rlhf_lightning.rewards
import rlhf_lightning.run.strategies
import rlhf_lightning.stages
from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.cli.messages import one_line_error
from rlhf_lightning.cli.python_values import note_objects
from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.run.checkpoints import AtomicCheckpoints, Checkpoints
from rlhf_lightning.run.curves import Curves
from rlhf_lightning.run.export import Export
from rlhf_lightning.run.metrics_csv import MetricsFile
from rlhf_lightning.run.monitors import MonitorCheck, readable_late_error
from rlhf_lightning.run.out_of_memory import OutOfMemory
from rlhf_lightning.run.predictions import Predictions
from rlhf_lightning.run.progress import Progress
from rlhf_lightning.run.samples import Samples
from rlhf_lightning.run.summary import Resume, Summary

for _module in pkgutil.iter_modules(rlhf_lightning.callbacks.__path__):  # so that their short names are known
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
    ".*sync_dist=True.*",  # what is logged is of all ranks already
)


class Parser(LightningArgumentParser):
    """Errors are raised, not printed; a key is written out, for what looks like an abbreviation is a typing error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Turn jsonargparse's report into one line.

        Raises:
            UserError: always.
        """
        raise UserError(one_line_error(self, message)) from ex


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml`, which repeats the run in a folder of its own."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        config = config.clone()
        config["trainer"]["default_root_dir"] = None
        if "ckpt_path" in config:
            config["ckpt_path"] = None
        super().__init__(parser, config, **{**kwargs, "overwrite": True, "save_to_log_dir": False})

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Training waits until its set-up has found no fault, for the folder may hold an earlier run."""
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Write it now."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Write it, unless this run goes on from one that has it."""
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if stage == "fit" or not path.exists():
            self.parser.save(self.config, path, skip_none=False, overwrite=True, multifile=False)
            note_objects(path)


class CLI(LightningCLI):
    """LightningCLI with the project's defaults, and with what a run leaves in its folder."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Optimizer and scheduler belong to the stage; nothing is added."""

    def _parse_ckpt_path(self) -> None:
        """A run is what its config says: Lightning would read the whole checkpoint here for hyper-parameters kept in it."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """A trainer with our logger beside the user's, and with our callbacks unless the user has one of the kind.

        Raises:
            UserError: Lightning does not take its options.
        """
        given = self._get(self.config_init, "trainer", default={})
        folder = Path(given["default_root_dir"] or ".")  # of a command line that is not ours
        loggers = given.get("logger")
        theirs = [] if loggers in (None, True, False) else loggers if isinstance(loggers, list) else [loggers]
        kwargs["logger"] = [MetricsFile(folder, keep=self.subcommand != "fit"), *theirs]
        callbacks = given.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        plugins = given.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        ours = [] if any(isinstance(plugin, CheckpointIO) for plugin in plugins) else [AtomicCheckpoints()]
        kwargs["plugins"] = [*ours, *plugins]
        if given.get("accelerator") == "auto" and MPSAccelerator.is_available():
            kwargs["accelerator"] = "cpu"  # the stages refuse Apple's MPS, which Lightning would choose
        kwargs["callbacks"] = [MonitorCheck(), *callbacks, *self._ours(folder, callbacks, given)]
        strategy, known = given.get("strategy"), ("auto", *StrategyRegistry.available_strategies())
        if isinstance(strategy, str) and strategy.lower() not in known:
            raise UserError(f"trainer.strategy {strategy!r} is unknown; {nearest(strategy, known)}")
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error

    def _ours(self, folder: Path, theirs: list[Callback], given: Any) -> list[Callback]:
        ours: list[Callback] = [Resume(), Samples(), Summary(), Curves(), Export(), Predictions(), OutOfMemory()]
        if given.get("enable_progress_bar") is not False:
            ours.append(Progress())
        if given.get("enable_checkpointing") is not False and not any(isinstance(c, Checkpoints) for c in theirs):
            ours.append(Checkpoints())
        return ours


def run(arguments: Arguments) -> None:
    """Parse and run a command line.

    Raises:
        UserError: something that the user can mend.
    """
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric.utilities.seed",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            parser_class=Parser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "max_epochs": 1,
                "num_sanity_val_steps": -1,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
                "devices": 1,
            },
            args=arguments.words,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        if (line := readable_late_error(error)) is None:
            raise
        raise UserError(line) from error

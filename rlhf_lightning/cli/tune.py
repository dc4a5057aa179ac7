"""`tune --config ppo.yaml --space spaces/ppo.yaml`: search values of a config, each trial a `fit` of its own."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import UserError, check_seed, text_of

if TYPE_CHECKING:
    from rlhf_lightning.tuning.space import Space
    from rlhf_lightning.tuning.study import Study

HELP = "search values of a config: learning rate, KL coefficient and others"
TAKES_OVERRIDES = True
OWN_OPTIONS = ("--trainer.default_root_dir", "--ckpt_path")
"""Options of `fit` that each trial gets from the search."""
SHOWN_TRIALS = 5


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the subcommand; all others are those of `fit`, for every trial."""
    parser.add_argument("--config", action="append", default=[], help="as for fit; may be given several times")
    parser.add_argument("--space", required=True, metavar="FILE", help="objective, and keys with the values to try")
    parser.add_argument("--trials", type=int, default=30, metavar="N", help="complete or pruned trials (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="trials at the same time (%(default)s)")
    parser.add_argument("--gpus", metavar="LIST", help="CUDA devices, one for each worker in turn: 0,1,2,3")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of the study (runs/tune/<config>)")
    parser.add_argument("--seed", type=int, default=0, help="of the search, not of the runs (%(default)s)")
    parser.add_argument("--no-pruning", action="store_true", help="run every trial to its end")
    parser.add_argument(
        "--max-failures", type=int, default=3, metavar="N", help="failed trials that end it (%(default)s)"
    )
    parser.add_argument("--keep-weights", action="store_true", help="keep checkpoints/ and export/ of ended trials")


def run(options: argparse.Namespace) -> int:
    """Search until the study has enough trials, and print the best.

    Raises:
        UserError: the config, the space or an option is wrong, Optuna is missing, or too many trials failed.
    """
    _check_options(options)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune needs Optuna; install it with: pip install 'rlhf_lightning[tune]'")
    from rlhf_lightning.cli.arguments import Arguments
    from rlhf_lightning.cli.config_files import find_config, load_config
    from rlhf_lightning.run.folder import check_folder, run_name
    from rlhf_lightning.tuning.search import Search, SearchOptions
    from rlhf_lightning.tuning.space import overlay, read_space
    from rlhf_lightning.tuning.study import Study

    path = find_config(options.space)
    space = read_space(load_config(path), str(path))
    for each in space.parameters:
        if any(word.partition("=")[0] == f"--{each.key}" for word in options.overrides):
            raise UserError(f"--{each.key} is given and {path} searches it; remove one of them")
    words = ["fit", *(word for config in options.config for word in ("--config", config))]
    given = Arguments.find([*words, *options.overrides])
    folder = options.output or Path("runs/tune") / (run_name(given.configs[0]) if given.configs else "fit")
    check_folder(folder)
    places = checked_places(space, str(path), words, options.overrides)
    study = Study(
        folder,
        space,
        lambda values: overlay(places, values),
        given.config,
        options.trials,
        not options.no_pruning,
        options.seed,
    )
    gpus = options.gpus.split(",") if options.gpus else ()
    search = SearchOptions(words, options.overrides, options.workers, gpus, options.max_failures, options.keep_weights)
    print(f"study: {folder} ({study.finished()} of {options.trials} trials)", flush=True)
    try:
        Search(study, search).run()
    finally:
        study.save_results()
    _print_results(study, [*words[1:], "--config", str(folder / "best.yaml"), *options.overrides])
    return 0


def _check_options(options: argparse.Namespace) -> None:
    check_seed("--seed", options.seed)
    for name in ("trials", "workers", "max_failures"):
        if (value := getattr(options, name)) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; set it to 1 or more")
    for flag in OWN_OPTIONS:
        if any(word.partition("=")[0] == flag for word in options.overrides):
            raise UserError(f"{flag} is given, and tune sets it for each trial; remove it")


def checked_places(
    space: Space, path: str, words: Sequence[str], overrides: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Find the keys of a space in the config, and try every choice and both ends of every range.

    The stage and the data module are made with each of them, without weights.

    Args:
        space: what is searched.
        path: of its file, for messages.
        words: of `fit`, with the configs.
        overrides: further options of `fit`.

    Returns:
        Key to its place in the config.

    Raises:
        UserError: a key does not exist, or the config is wrong with a value.
    """
    import yaml

    from rlhf_lightning.cli.failures import user_error
    from rlhf_lightning.cli.reading import build_without_trainer, read
    from rlhf_lightning.tuning.space import config_place, overlay

    config = read([*words, *overrides])
    build_without_trainer(config)
    places: dict[str, tuple[str, ...]] = {}
    for each in space.parameters:
        place = config_place(config.values, each.key)
        if place is None:
            places[each.key] = _no_place(each.key, each.examples[0], path, words, overrides)
        else:
            places[each.key] = place
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "overlay.yaml"
        for each in space.parameters:
            for value in each.examples:
                file.write_text(yaml.safe_dump(overlay(places, {each.key: value})), encoding="utf-8")
                try:
                    build_without_trainer(read([*words, "--config", str(file), *overrides]))
                except Exception as error:
                    if (cause := user_error(error)) is None:
                        raise
                    raise UserError(f"{path}: {each.key} cannot be {value}: {text_of(cause)}") from error
    return places


def _no_place(key: str, value: object, path: str, words: Sequence[str], overrides: Sequence[str]) -> tuple[str, ...]:
    """Refuse a key that the config has not, with the hint that `fit` gives."""
    from rlhf_lightning.cli.reading import read

    try:
        read([*words, f"--{key}={value}", *overrides])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    raise UserError(f"{path}: the config has no value at parameters.{key}; set {key} in the config too, or remove it")


def _print_results(study: Study, command: Sequence[str]) -> None:
    import shlex

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, objective = Console(highlight=False, force_jupyter=False), study.space.objective
    keys = [each.key for each in study.space.parameters]
    table = Table(title="best trials", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("trial", objective.metric, objective.kl_metric, *_last_words(keys)):
        table.add_column(name, overflow="fold")
    for row in study.ranked()[:SHOWN_TRIALS]:
        table.add_row(str(row["number"]), *map(_number, (row["value"], row["kl"])), *_values(row["params"], keys))
    console.print(table)
    if importances := study.importances():
        table = Table("parameter", "importance", title="importances", title_justify="left")
        for key, value in importances.items():
            table.add_row(key, f"{value:.2f}")
        console.print(table)
    if study.best() is None:
        print(
            f"no trial is within {objective.kl_metric} {objective.kl_limit}; raise objective.kl_limit or the KL coefficient"
        )
        return
    print(f"best: {study.folder / 'best.yaml'}\npython -m rlhf_lightning fit {shlex.join(command)}")


def _last_words(keys: Sequence[str]) -> list[str]:
    """Return `lr` for `model.optimizer.lr`; the whole key where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [word if last.count(word) == 1 else key for word, key in zip(last, keys, strict=True)]


def _values(params: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{params[key]:.3g}" if isinstance(params[key], float) else str(params[key]) for key in keys]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

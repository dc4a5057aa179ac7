"""The command line before anything heavy is imported: where configs are, and where the run's folder is."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.cli.early_check import check_keys, merged
from rlhf_lightning.cli.overrides import as_config, expand_home, values, without_nulls
from rlhf_lightning.cli.plugin_files import shipped_folder
from rlhf_lightning.errors import UserError, nearest
from rlhf_lightning.run.checkpoint_files import check, newest_complete

SUBCOMMANDS = ("fit", "validate", "test", "predict")
NO_FILES = ("last", "best", "hpc", "registry")
"""What Lightning takes for a checkpoint besides a path."""
FOLDER_OF_RUN = "RLHF_LIGHTNING_RUN_FOLDER"
"""How the first process of a run tells those that it starts where the run writes: their clocks would say something else."""


@dataclass
class Arguments:
    """The words for Lightning's command line, and the folder that the run writes to (None where nothing runs)."""

    words: list[str]
    folder: Path | None

    @classmethod
    def of(cls, words: Sequence[str]) -> Arguments:
        """Find the configs and the folder of a command line.

        Raises:
            UserError: an unknown subcommand, a config that is missing or no YAML, a checkpoint that is missing, or a folder
                that cannot be written to.
        """
        helps = not words or any(word in ("-h", "--help") or word.startswith("--print_config") for word in words)
        first = words[0] if words else ""
        if first not in SUBCOMMANDS:
            fault = f"there is no subcommand {first!r}" if first[:1] not in ("", "-") else "the subcommand comes first"
            raise UserError(f"{fault}; {nearest(first, (*SUBCOMMANDS, 'init'))}")
        found, configs = _with_configs([expand_home(word) for word in words])
        whole = as_config(found[1:], _load)
        plain = [found[0], *without_nulls(found[1:], whole)]
        if helps:
            return cls(plain, None)
        _check_begins(words)
        contents = [_load(path) for path in configs]
        check_keys(functools.reduce(merged, contents, {}), contents)
        check_keys(whole, [*contents, values(found[1:])], typed=True)
        found = plain
        checkpoint = _value(found, "--ckpt_path") or _last(configs, "ckpt_path")
        if checkpoint and checkpoint.startswith("~"):
            checkpoint = os.path.expanduser(checkpoint)
            found.append(f"--ckpt_path={checkpoint}")
        _check_checkpoint(checkpoint)
        folder = _folder(found, configs)
        _check_folder(folder)
        if words[0] == "fit" and checkpoint in (None, "null"):
            _tell_of_earlier(folder)
        words = [*found, f"--trainer.default_root_dir={folder}"]
        return cls(_resolved(words, folder) if checkpoint == "last" else words, folder)


def _check_begins(words: Sequence[str]) -> None:
    first = words[1] if len(words) > 1 else ""
    if not first:
        raise UserError(f"{words[0]} wants a config: {words[0]} --config ppo.yaml, for instance")
    if not first.startswith("-"):
        raise UserError(f"{first} stands alone; did you mean '{words[0]} --config {first}'?")
    for word in words:
        if re.match(r"-[A-Za-z_]\w*\.", word):
            raise UserError(f"{word} begins with one dash; did you mean '-{word}'?")


def _check_folder(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(
            f"the run's folder {folder} cannot be made: {there} is a file; choose another trainer.default_root_dir"
        )
    if not os.access(there, os.W_OK):
        raise UserError(f"the run's folder {folder} cannot be written to; choose another trainer.default_root_dir")


def _tell_of_earlier(folder: Path) -> None:
    if (folder / "metrics.csv").exists() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"beginning anew in {folder}: what an earlier run left there is replaced (--ckpt_path last goes on with it)"
        )


def _with_configs(words: list[str]) -> tuple[list[str], list[Path]]:
    found: list[str] = []
    configs: list[Path] = []
    wanted = False
    for word in words:
        flag, equals, value = word.partition("=")
        if wanted or (flag in ("--config", "-c") and equals):
            configs.append(find_config(word if wanted else value))
            found.append(str(configs[-1]) if wanted else f"{flag}={configs[-1]}")
            wanted = False
        else:
            wanted = word in ("--config", "-c")
            found.append(word)
    if wanted:
        raise UserError("--config wants the name of a file after it")
    return found, configs


def find_config(name: str) -> Path:
    """A config as given, else in ./configs, else in the package; `.yaml` may be left out.

    Raises:
        UserError: it is in none of them, or is no YAML.
    """
    places = [Path(), Path("configs"), shipped_folder("configs")]
    for place in places:
        for path in (place / name, place / f"{name}.yaml"):
            if path.is_file():
                _load(path)
                return path
    known = {path.name for place in places[1:] for path in place.glob("*.yaml")}
    raise UserError(f"config {name} is neither here, nor in ./configs, nor in the package; {nearest(name, known)}")


class _Unique(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last and what is under it."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                problem = f"the key {key.value!r} stands twice here"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Unique)
    except UnicodeDecodeError as error:
        raise UserError(f"config {path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"config {path}{line} is no YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise UserError(f"config {path} must hold keys such as model: and data:, found {type(content).__name__}")
    if not isinstance(content.get("trainer") or {}, dict):
        raise UserError(f"config {path}: trainer must hold keys such as max_epochs:, found {content['trainer']!r}")
    return content


def _last(configs: list[Path], *keys: str) -> str | None:
    """What the configs say for a key, later ones over earlier ones."""
    said: str | None = None
    for config in configs:
        content: Any = _load(config)
        for key in keys:
            content = (content or {}).get(key)
        said = content or said
    return said


def _resolved(words: list[str], folder: Path) -> list[str]:
    """With the newest whole checkpoint of the run instead of `last`; without one training begins at the beginning."""
    path, said = newest_complete(folder / "checkpoints")
    if path is None and words[0] != "fit":
        raise UserError(f"--ckpt_path last: no whole checkpoint in {folder}")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in [*said, *([] if path else [f"no checkpoint in {folder} yet: beginning at the beginning"])]:
            print(line, flush=True)
    kept = list(words)
    while "--ckpt_path" in kept:
        place = kept.index("--ckpt_path")
        del kept[place : place + 2]
    kept = [word for word in kept if not word.startswith("--ckpt_path=")]
    return [*kept, f"--ckpt_path={path or 'null'}"]


def _check_checkpoint(name: str | None) -> None:
    if name is None or name.startswith(NO_FILES) or "://" in name:
        return
    if Path(name).exists():
        check(Path(name))
        return
    beside = [path.name for path in Path(name).parent.glob("*.ckpt")]
    hint = nearest(Path(name).name, beside) if beside else "give the path of a .ckpt file, or `last`"
    raise UserError(f"checkpoint {name} is not there; {hint}")


def _folder(words: list[str], configs: list[Path]) -> Path:
    """Where the run writes: as given, the folder of the checkpoint it goes on from, or a new one."""
    given = _value(words, "--trainer.default_root_dir") or _last(configs, "trainer", "default_root_dir")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        given = os.environ.get(FOLDER_OF_RUN) or given
    if given:
        return Path(given).expanduser()
    runs = Path("runs") / (_named(configs[0]) if configs else words[0])
    checkpoint = _value(words, "--ckpt_path")
    if checkpoint == "last":
        earlier = sorted(runs.glob("*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
        if not earlier:
            raise UserError(f"--ckpt_path last: no run under {runs} has a checkpoint")
        return earlier[-1].parent.parent
    if words[0] == "fit" and checkpoint and Path(checkpoint).parent.name == "checkpoints":
        return Path(checkpoint).parent.parent
    folder = runs / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    number = 2
    while folder.exists():
        folder, number = folder.with_name(f"{folder.name.split('.')[0]}.{number}"), number + 1
    return folder


def _named(config: Path) -> str:
    """What runs of a config are called; of one that a run left, `runs/ppo/<time>/config.yaml`, as that run."""
    folder = config.absolute().parent
    if config.name != "config.yaml" or not (folder / "metrics.csv").exists():
        return config.stem
    return folder.parent.name if re.match(r"\d{4}-\d\d-\d\d_", folder.name) else folder.name


def _value(words: list[str], flag: str) -> str | None:
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else words[index + 1] if index + 1 < len(words) else None
    return None

"""The command line of Lightning's subcommands before torch is imported: configs, keys, checkpoint, folder."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.class_help import with_stage
from rlhf_lightning.cli.config_files import find_config, last_value, load_config, merged
from rlhf_lightning.cli.key_check import check_keys
from rlhf_lightning.cli.overrides import as_config, expand_home, values, without_nulls
from rlhf_lightning.cli.plain_values import check_plain_values, check_words
from rlhf_lightning.cli.schedule_functions import replace_schedule_words, with_schedule_classes
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.folder import check_folder, choose_folder, claimed, is_first_process, report_earlier_run
from rlhf_lightning.run.kind import is_same_kind
from rlhf_lightning.run.last_checkpoint import check_checkpoint, resolve_best, resolve_last


@dataclass(frozen=True)
class Arguments:
    """The words for Lightning's command line, and the folder that the run writes to (None where nothing runs)."""

    words: list[str]
    folder: Path | None = None
    configs: list[Path] = field(default_factory=list)
    asks_for_help: bool = False
    is_new: bool = False
    """The folder is one that `choose_folder` made up."""
    allowed: tuple[str, ...] = ()
    """Options that may differ from those of the run that is resumed (`--allow_change`)."""
    config: dict[str, Any] = field(default_factory=dict)
    """The merged config as given, without defaults."""

    @classmethod
    def of(cls, words: Sequence[str]) -> Arguments:
        """Find and check the configs, the checkpoint and the folder of a command line; nothing is written.

        Raises:
            UserError: a config, a key, a class, the checkpoint or the folder is wrong.
        """
        return cls.find(words).placed()

    @contextmanager
    def claimed(self) -> Iterator[Arguments]:
        """Make the folder of the run and hold it until the run has ended.

        Yields:
            The arguments; their folder is another if a second run took the name.

        Raises:
            UserError: another process writes to the folder.
        """
        if self.folder is None:
            yield self
            return
        with claimed(self.folder, self.is_new) as folder:
            flag = "--trainer.default_root_dir"
            yield replace(self, words=[*_without(self.words, flag), f"{flag}={folder}"], folder=folder)

    @classmethod
    def find(cls, words: Sequence[str]) -> Arguments:
        """Find the configs of a command line, and check keys and classes against the schema.

        Raises:
            UserError: a config is missing or not valid YAML, or a key or a class does not exist.
        """
        check_words(list(words))
        words, allowed = _take(list(words), "--allow_change")
        resolved, configs = _find_configs([expand_home(word) for word in words])
        given = as_config(resolved[1:], load_config)
        check_plain_values(given)
        whole = with_schedule_classes(given)
        resolved = [resolved[0], *replace_schedule_words(resolved[1:], given, load_config)]
        plain = [resolved[0], *without_nulls(resolved[1:], whole)]
        if any(map(_asks_for_help, words)):
            return cls(with_stage(plain, whole), configs=configs, asks_for_help=True, allowed=allowed)
        _check_first_words(words)
        contents = [with_schedule_classes(load_config(path)) for path in configs]
        check_keys(functools.reduce(merged, contents, {}), contents)
        check_keys(whole, [*contents, *values(resolved[1:])], typed=True)
        return cls(plain, configs=configs, allowed=allowed, config=whole)

    def placed(self) -> Arguments:
        """Add the folder of the run, and the checkpoint that it resumes from.

        Raises:
            UserError: the checkpoint is missing or damaged, or the folder cannot be written to.
        """
        if self.asks_for_help:
            return self
        subcommand, words = self.words[0], list(self.words)
        checkpoint = _value(words, "--ckpt_path") or last_value(self.configs, "ckpt_path")
        if checkpoint == "null":
            checkpoint = None
        if checkpoint and checkpoint.startswith("~"):
            checkpoint = os.path.expanduser(checkpoint)
            words.append(f"--ckpt_path={checkpoint}")
        check_checkpoint(checkpoint)
        given = _value(words, "--trainer.default_root_dir") or last_value(self.configs, "trainer", "default_root_dir")
        first = self.configs[0] if self.configs else None
        folder = choose_folder(subcommand, given, checkpoint, first, lambda run: is_same_kind(run, self.config))
        check_folder(folder)
        if subcommand == "fit" and checkpoint is None:
            report_earlier_run(folder)
        words.append(f"--trainer.default_root_dir={folder}")
        if checkpoint in NAMES:
            found = NAMES[checkpoint](folder, subcommand)
            words = [*_without(words, "--ckpt_path"), f"--ckpt_path={found or 'null'}"]
        is_new = not given and checkpoint is None and is_first_process()
        return replace(self, words=words, folder=folder, is_new=is_new)


NAMES = {"last": resolve_last, "best": resolve_best}
"""Checkpoints that `--ckpt_path` names without a path."""


def _asks_for_help(word: str) -> bool:
    """Say whether a word prints something and ends, as `--model.algorithm.help PPO` does."""
    flag = word.partition("=")[0]
    return flag in ("-h", "--help", "--print_config") or (flag.startswith("--") and flag.endswith(".help"))


def _check_first_words(words: Sequence[str]) -> None:
    first = words[1] if len(words) > 1 else ""
    if not first:
        raise UserError(f"{words[0]} needs a config; pass one, for example: {words[0]} --config ppo.yaml")
    if not first.startswith("-"):
        raise UserError(f"unexpected argument '{first}'; did you mean '--config {first}'?")
    for word in words:
        if re.match(r"-[A-Za-z_]\w*\.", word):
            raise UserError(f"{word} begins with one dash; did you mean '-{word}'?")


def _find_configs(words: list[str]) -> tuple[list[str], list[Path]]:
    """Replace the names of configs by their paths."""
    resolved: list[str] = []
    configs: list[Path] = []
    is_name = False
    for word in words:
        flag, equals, value = word.partition("=")
        if is_name or (flag in ("--config", "-c") and equals):
            configs.append(find_config(word if is_name else value))
            resolved.append(str(configs[-1]) if is_name else f"{flag}={configs[-1]}")
            is_name = False
        else:
            is_name = word in ("--config", "-c")
            resolved.append(word)
    if is_name:
        raise UserError("--config has no value; pass the name of a file after it")
    return resolved, configs


def _take(words: list[str], flag: str) -> tuple[list[str], tuple[str, ...]]:
    """Take a flag with its values out of the words; one value may hold several names, separated by commas."""
    found = []
    while (value := _value(words, flag)) is not None:
        found += value.split(",")
        place = next(i for i, word in enumerate(words) if word.partition("=")[0] == flag)
        words = words[:place] + words[place + (1 if "=" in words[place] else 2) :]
    return words, tuple(found)


def _value(words: list[str], flag: str) -> str | None:
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else words[index + 1] if index + 1 < len(words) else None
    return None


def _without(words: list[str], flag: str) -> list[str]:
    kept = list(words)
    while flag in kept:
        place = kept.index(flag)
        del kept[place : place + 2]
    return [word for word in kept if not word.startswith(f"{flag}=")]

"""The words of a command line over the configs that it names, as one config, before anything heavy is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.cli.early_check import merged

TOPS = ("model", "data", "trainer")
OF_CLASSES = ("class_path", "init_args", "dict_kwargs")


def expand_home(word: str) -> str:
    """The word with the path that a shell leaves as it is: none expands the ~ of `--flag=~/file`."""
    flag, equals, value = word.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals and flag.startswith("-") and value.startswith("~") else word


def as_config(words: Sequence[str], load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Configs and words in their order, later over earlier.

    >>> as_config(["--model.algorithm", "DPO", "--model.algorithm.beta=0.3", "--trainer.callbacks+=Timer"], dict)
    {'model': {'algorithm': {'class_path': 'DPO', 'init_args': {'beta': 0.3}}}, 'trainer': {'callbacks': ['Timer']}}
    """
    config: dict[str, Any] = {}
    for flag, value in _pairs(words):
        name = flag.lstrip("-").removesuffix("+")
        keys = tuple(name.split("."))
        if flag in ("--config", "-c"):
            config = merged(config, load(Path(value)))
        elif flag.startswith("--") and keys[0] in TOPS and keys[-1] != "help":
            config = _put(config, keys, _read(value), flag.endswith("+"))
    return config


def without_nulls(words: Sequence[str], config: Any) -> list[str]:
    """The words, each `--a.b.c null` as a config of its own: two classes deep jsonargparse would read the text None.

    Args:
        words: of a command line.
        config: what they and their configs say together, as `as_config` gives it.

    >>> without_nulls(["--model.policy.pad_token", "null"], {"model": {"class_path": "A", "init_args": {"policy": {}}}})
    ['--config', '{"model": {"init_args": {"policy": {"pad_token": null}}}}']
    """
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        keys, apart = tuple(flag.lstrip("-").split(".")), not equals and rest[:1] == ["null"]
        given = _nulled(config, keys) if len(keys) > 2 and keys[0] in TOPS and (apart or value == "null") else None
        if given is None:
            found.append(word)
        else:
            found += ["--config", json.dumps(given)]
            del rest[: int(apart)]
    return found


def _nulled(node: Any, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """A config with null under `keys`; None where `node` does not show what the last of them belongs to."""
    if not isinstance(node, dict):
        return None
    if any(key in node for key in OF_CLASSES) and keys[0] not in OF_CLASSES:
        keys = ("init_args", *keys)
    inner = None if len(keys) == 1 else _nulled(node.get(keys[0]), keys[1:])
    return None if inner is None and len(keys) > 1 else {keys[0]: inner}


def values(words: Sequence[str]) -> list[Any]:
    """What the words give, each by itself under the last part of its key."""
    pairs = ((flag.strip("-+").split("."), value) for flag, value in _pairs(words))
    return [{keys[-1]: _read(value)} for keys, value in pairs if keys[0] in TOPS]


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag.startswith("-"):
            yield flag, value if equals or not rest or rest[0].startswith("--") else rest.pop(0)


def _read(value: str) -> Any:
    """A value as YAML; text where it is none or names a file."""
    try:
        return value if os.path.isfile(value) else yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # a date that is none is a ValueError
        return value


def _put(node: Any, keys: tuple[str, ...], value: Any, more: bool = False) -> Any:
    """A config with a value under keys; what is below a class is an argument of it."""
    if not keys and more:
        there = node if isinstance(node, list) else [] if node is None else [node]
        return [*there, *(value if isinstance(value, list) else [value])]
    if not keys:
        same = isinstance(node, dict) and value == node.get("class_path", node)
        return node if same else merged(node, value)
    if isinstance(node, list):
        return [*node[:-1], _put(node[-1], keys, value, more)] if node else node
    inner = {"class_path": node} if isinstance(node, str) else node if isinstance(node, dict) else {}
    if any(key in inner for key in OF_CLASSES) and keys[0] not in OF_CLASSES:
        keys = ("init_args", *keys)
    if keys == ("class_path",):
        return _put(inner or None, (), {"class_path": value})
    return {**inner, keys[0]: _put(inner.get(keys[0]), keys[1:], value, more)}

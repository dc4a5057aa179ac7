"""The options of a command line merged over the configs that it names, before torch is imported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning import bounded_yaml
from rlhf_lightning.cli.config_files import merged

SECTIONS = ("model", "data", "trainer")
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
NO_KEYS = ("config", "print_config", "help")
"""Options that are no keys of a config."""


def expand_home(word: str) -> str:
    """Expand the ~ of `--flag=~/file`, which no shell expands."""
    flag, equals, value = word.partition("=")
    return f"{flag}={os.path.expanduser(value)}" if equals and flag.startswith("-") and value.startswith("~") else word


def as_config(words: Sequence[str], load: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Merge configs and options in their order, later over earlier.

    >>> as_config(["--model.algorithm", "DPO", "--model.algorithm.beta=0.3", "--trainer.callbacks+=Timer"], dict)
    {'model': {'algorithm': {'class_path': 'DPO', 'init_args': {'beta': 0.3}}}, 'trainer': {'callbacks': ['Timer']}}
    """
    config: dict[str, Any] = {}
    for flag, value in _pairs(words):
        name = flag.lstrip("-").removesuffix("+")
        keys = tuple(name.split("."))
        if flag in ("--config", "-c"):
            config = merged(config, load(Path(value)))
        elif flag.startswith("--") and keys[0] not in NO_KEYS and keys[-1] != "help":
            config = _put(config, keys, _read(value), flag.endswith("+"))
    return config


def without_nulls(words: Sequence[str], config: Any) -> list[str]:
    """Replace each `--a.b.c null` by a config of its own: two classes deep jsonargparse would read the text None.

    Args:
        words: of a command line.
        config: the words and their configs merged, as by `as_config`.

    >>> without_nulls(["--model.policy.pad_token", "null"], {"model": {"class_path": "A", "init_args": {"policy": {}}}})
    ['--config', '{"model": {"init_args": {"policy": {"pad_token": null}}}}']
    """
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        keys, apart = tuple(flag.lstrip("-").split(".")), not equals and rest[:1] == ["null"]
        given = _nulled(config, keys) if len(keys) > 2 and keys[0] in SECTIONS and (apart or value == "null") else None
        if given is None:
            found.append(word)
        else:
            found += ["--config", json.dumps(given)]
            del rest[: int(apart)]
    return found


def _nulled(node: Any, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """Nest null under `keys`; return None where `node` does not show which class the last key belongs to."""
    if not isinstance(node, dict):
        return None
    if any(key in node for key in CLASS_KEYS) and keys[0] not in CLASS_KEYS:
        keys = ("init_args", *keys)
    inner = None if len(keys) == 1 else _nulled(node.get(keys[0]), keys[1:])
    return None if inner is None and len(keys) > 1 else {keys[0]: inner}


def values(words: Sequence[str]) -> list[Any]:
    """Return the values of the options, each under the last component of its key."""
    pairs = ((flag.strip("-+").split("."), value) for flag, value in _pairs(words))
    return [{keys[-1]: _read(value)} for keys, value in pairs if keys[0] in SECTIONS]


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag.startswith("-"):
            yield flag, value if equals or not rest or rest[0].startswith("--") else rest.pop(0)


def _read(value: str) -> Any:
    """Read a value as YAML; invalid YAML, YAML beyond the limits and names of files stay text."""
    try:
        return value if os.path.isfile(value) else bounded_yaml.load(value)
    except yaml.YAMLError:
        return value


def _put(node: Any, keys: tuple[str, ...], value: Any, more: bool = False) -> Any:
    """Set a value under nested keys; a key below a class is an argument of the class."""
    if not keys and more:
        there = node if isinstance(node, list) else [] if node is None else [node]
        return [*there, *(value if isinstance(value, list) else [value])]
    if not keys:
        same = isinstance(node, dict) and value == node.get("class_path", node)
        return node if same else merged(node, value)
    if isinstance(node, list):
        return [*node[:-1], _put(node[-1], keys, value, more)] if node else node
    inner = {"class_path": node} if isinstance(node, str) else node if isinstance(node, dict) else {}
    if any(key in inner for key in CLASS_KEYS) and keys[0] not in CLASS_KEYS:
        keys = ("init_args", *keys)
    if keys == ("class_path",):
        return _put(inner or None, (), {"class_path": value})
    return {**inner, keys[0]: _put(inner.get(keys[0]), keys[1:], value, more)}

"""The file of a search: its objective, and the keys of the config with the values to try."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning.errors import UserError, nearest, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str | None
DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class Objective:
    """Say which of two trials is better."""

    metric: str
    """Held-out metric of the last validation, such as `val/reward/true`."""
    direction: Literal["maximize", "minimize"] = "maximize"
    kl_limit: float | None = None
    """A trial whose `kl_metric` is above it counts as worse than any trial below it; None: no limit."""
    kl_metric: str = "val/kl/reference"

    def is_within_limit(self, kl: float | None) -> bool:
        """Say whether a trial, or a validation, keeps to the limit of the KL divergence."""
        return self.kl_limit is None or (kl is not None and kl <= self.kl_limit)


@dataclass(frozen=True)
class Parameter:
    """Describe the values of one key: a range, or choices."""

    key: str
    """As on the command line, such as `model.algorithm.kl.coef`."""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def distribution(self) -> BaseDistribution:
        """The distribution of Optuna; integers if both ends are."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        assert self.low is not None
        assert self.high is not None
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an end that no step reaches
            if isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float):
                return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def examples(self) -> tuple[Value, ...]:
        """Every choice, or both ends of the range."""
        return self.choices or (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """Hold an objective and the parameters to search."""

    objective: Objective
    parameters: tuple[Parameter, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Key to distribution, in the order of the file."""
        return {each.key: each.distribution for each in self.parameters}

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what the search does, as values of JSON."""
        return {
            "objective": asdict(self.objective),
            "parameters": [{**asdict(each), "choices": list(each.choices)} for each in self.parameters],
        }


def read_space(content: Mapping[str, Any], path: str) -> Space:
    """Read the content of a file.

    Args:
        content: with `objective` and `parameters`.
        path: of the file, for messages.

    Raises:
        UserError: a key is missing or unknown, or a range or a choice is none.
    """
    _check_names(content, ("objective", "parameters"), path, "")
    for name in ("objective", "parameters"):
        if not isinstance(content.get(name), dict) or not content[name]:
            raise UserError(f"{path}: {name} is {shown(content.get(name))}; set it to a mapping with at least one key")
    return Space(
        _objective(content["objective"], path),
        tuple(_parameter(str(key), each, path) for key, each in content["parameters"].items()),
    )


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], path: str, prefix: str) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{path}: unknown key {f'{prefix}{name}'!r}; {nearest(str(name), known)}")


def _objective(given: Mapping[str, Any], path: str) -> Objective:
    _check_names(given, tuple(each.name for each in fields(Objective)), path, "objective.")
    objective = Objective(**{"metric": "", **given})
    for name in ("metric", "kl_metric"):
        if not isinstance(value := getattr(objective, name), str) or not value:
            raise UserError(
                f"{path}: objective.{name} is {shown(value)}; set it to a held-out metric (val/reward/mean)"
            )
    if objective.direction not in DIRECTIONS:
        raise UserError(
            f"{path}: objective.direction is {shown(objective.direction)}; set it to {' or '.join(DIRECTIONS)}"
        )
    if objective.kl_limit is not None and not (_is_number(objective.kl_limit) and objective.kl_limit > 0):
        raise UserError(
            f"{path}: objective.kl_limit is {shown(objective.kl_limit)}; set it to a number above 0, or remove it"
        )
    return objective


def _parameter(key: str, given: Any, path: str) -> Parameter:
    where = f"parameters.{key}"
    if not isinstance(given, dict) or not ({"low", "high"} <= set(given) or "choices" in given):
        raise UserError(f"{path}: {where} is {shown(given)}; set it to {{low: …, high: …}} or {{choices: [...]}}")
    names = ("choices",) if "choices" in given else ("low", "high", "step", "log")
    _check_names(given, names, path, f"{where}.")
    if "choices" in given:
        return Parameter(key, choices=_choices(given["choices"], path, where))
    for name in ("low", "high", "step"):
        if name in given and not _is_number(given[name]):
            raise UserError(f"{path}: {where}.{name} is {shown(given[name])}; set it to a number (1.0e-4, not 1e-4)")
    if not isinstance(given.get("log", False), bool):
        raise UserError(f"{path}: {where}.log is {shown(given['log'])}; set it to true or false")
    if given["low"] >= given["high"]:
        raise UserError(f"{path}: {where}.low is {given['low']} and high is {given['high']}; set high above low")
    parameter = Parameter(key, **given)
    try:
        assert parameter.distribution
    except (ValueError, UserWarning) as error:
        raise UserError(f"{path}: {where}: {error}") from error
    return parameter


def _choices(given: Any, path: str, where: str) -> tuple[Value, ...]:
    plain = isinstance(given, list) and all(isinstance(each, bool | int | float | str | None) for each in given)
    if not plain or len(given) < 2 or len({repr(each) for each in given}) < len(given):
        raise UserError(
            f"{path}: {where}.choices is {shown(given)}; set it to a list of at least two different numbers, texts, true, "
            "false or null"
        )
    return tuple(given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def config_place(config: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """Find the place of a key in a whole config, in which a class is a mapping of `class_path` and `init_args`.

    >>> config_place({"model": {"class_path": "A", "init_args": {"lr": 1}}}, "model.lr")
    ('model', 'init_args', 'lr')
    >>> config_place({"algorithm": {"class_path": "PPO", "init_args": {}}}, "algorithm")
    ('algorithm', 'class_path')
    >>> config_place({"lr": 1}, "rate") is None
    True
    """
    node: Any = config
    place: list[str] = []
    for name in key.split("."):
        if isinstance(node, Mapping) and "class_path" in node and name not in node:
            place.append("init_args")
            node = node.get("init_args")
        if not isinstance(node, Mapping) or name not in node:
            return None
        place.append(name)
        node = node[name]
    return (*place, "class_path") if isinstance(node, Mapping) and "class_path" in node else tuple(place)


def overlay(places: Mapping[str, tuple[str, ...]], values: Mapping[str, Value]) -> dict[str, Any]:
    """Nest values under the places of their keys, as a config to merge over another.

    >>> overlay({"model.lr": ("model", "init_args", "lr")}, {"model.lr": 0.1})
    {'model': {'init_args': {'lr': 0.1}}}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        *above, last = places[key]
        node = found
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return found

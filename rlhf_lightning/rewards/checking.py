"""Check what a reward returned: one number per response, of any type that holds numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError, shown
from rlhf_lightning.types import Completions

RESERVED = {"mean", "std", "unscored", "tied"}
"""Names of metrics `reward/<name>` that every reward has."""
LARGEST = torch.finfo(torch.float32).max


def checked_scores(name: str, scores: Any, count: int, item: str = "completion") -> list[float]:
    """Convert `count` scores to numbers; NaN for a completion that cannot be scored.

    Args:
        name: of the reward, for messages.
        scores: a sequence, a NumPy array or a tensor of any type of numbers on any device.
        count: number of completions, or of steps.
        item: what has a score each, for messages.

    Raises:
        UserError: there is not one score per completion, or one is neither None, NaN nor a finite float32.
    """
    return [_number(name, f"{item} {row}", value) for row, value in enumerate(_values(name, scores, count, item))]


def checked_steps(name: str, scores: Any, completions: Completions) -> tuple[Tensor, Tensor]:
    """Place the scores of steps on their last tokens.

    Args:
        name: of the reward, for messages.
        scores: for each completion a sequence of one score per step; None for a completion that cannot be scored.
        completions: have `ends`.

    Returns:
        The sums, float32 [B], NaN where a completion or one of its steps has no score, and the steps, float32 [B, T].

    Raises:
        UserError: the completions have no steps, or there is not one score per step.
    """
    if completions.ends is None:
        raise UserError(
            f"reward {name} scores steps and the responses have none; wrap it in StepReward, which splits them"
        )
    values = [_no_nan(value) for value in _values(name, _as_python(scores), len(completions))]
    placed = torch.zeros(completions.mask.shape, dtype=torch.float64)
    for row, (value, ends) in enumerate(zip(values, completions.ends, strict=True)):
        if not set(ends) <= set(range(placed.shape[1])) or ends != sorted(set(ends)):
            raise UserError(
                f"completion {row} has steps that end in the columns {ends}; they must increase and have tokens"
            )
        if value is None:
            numbers = [math.nan] * len(ends)
        else:
            numbers = checked_scores(f"{name}, completion {row},", value, len(ends), "step")
        placed[row, ends] = torch.tensor(numbers, dtype=torch.float64)
    rewards = placed.sum(-1).float()
    unscored = torch.tensor([value is None for value in values], dtype=torch.bool)
    return rewards.masked_fill(unscored, math.nan), placed.float()


def checked_components(name: str, components: Any) -> Mapping[str, Any]:
    """Refuse components whose metric would replace another one.

    Raises:
        UserError: they are no mapping, or one has the name of a metric of all rewards.
    """
    if not isinstance(components, Mapping):
        raise UserError(f"reward {name} returned components of type {type(components).__name__}; they must be a dict")
    if taken := sorted(set(components) & RESERVED):
        raise UserError(
            f"reward {name} has a component {taken[0]!r}, and reward/{taken[0]} is another metric; rename it"
        )
    return components


def _values(name: str, scores: Any, count: int, item: str = "completion") -> list[Any]:
    shape = getattr(scores, "shape", None)
    if shape is not None and len(shape) > 1:
        raise UserError(
            f"reward {name} returned a {type(scores).__name__} of shape {tuple(shape)}; it must return {count} scores, one per "
            f"{item}: a shape of ({count},)"
        )
    values = _as_python(scores)
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        raise UserError(f"reward {name} returned {shown(values)}; it must return {count} scores, one per {item}")
    values = list(values)
    if len(values) != count:
        raise UserError(f"reward {name} returned {len(values)} scores for {count} {item}s; it must return one for each")
    return values


def _as_python(value: Any) -> Any:
    """Convert a tensor, a NumPy array or one of their scalars to Python's lists and numbers."""
    return value.tolist() if hasattr(value, "shape") and hasattr(value, "tolist") else value


def _no_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _number(name: str, place: str, score: Any) -> float:
    if score is None:
        return math.nan
    value = _as_python(score)
    try:
        number = None if isinstance(value, str | bytes | bytearray) else float(value)
    except Exception:  # a type of the user's may raise any
        number = None
    if number is None:
        raise UserError(f"reward {name} returned {shown(score)} for {place}; it must return a number or None")
    if abs(number) > LARGEST:
        raise UserError(
            f"reward {name} returned {number} for {place}; it must return a finite number, or None for a response "
            "that cannot be scored"
        )
    return number

"""Check what a reward returned: one number per response, of any type that holds numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch

from rlhf_lightning.errors import UserError, shown

LARGEST = torch.finfo(torch.float32).max


def checked_scores(name: str, scores: Any, count: int) -> list[float]:
    """Convert the scores of `count` completions to numbers; NaN for a completion that cannot be scored.

    Args:
        name: of the reward, for messages.
        scores: a sequence, a NumPy array or a tensor of any type of numbers on any device.
        count: number of completions.

    Raises:
        UserError: there is not one score per completion, or one is neither None, NaN nor a finite float32.
    """
    return [_number(name, row, value) for row, value in enumerate(_values(name, scores, count))]


def _values(name: str, scores: Any, count: int) -> list[Any]:
    shape = getattr(scores, "shape", None)
    if shape is not None and len(shape) > 1:
        raise UserError(
            f"reward {name} returned a {type(scores).__name__} of shape {tuple(shape)}; it must return {count} scores, one per "
            f"completion: a shape of ({count},)"
        )
    values = _as_python(scores)
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        raise UserError(f"reward {name} returned {shown(values)}; it must return {count} scores, one per completion")
    values = list(values)
    if len(values) != count:
        raise UserError(
            f"reward {name} returned {len(values)} scores for {count} completions; it must return one for each"
        )
    return values


def _as_python(value: Any) -> Any:
    """Convert a tensor, a NumPy array or one of their scalars to Python's lists and numbers."""
    return value.tolist() if hasattr(value, "shape") and hasattr(value, "tolist") else value


def _number(name: str, row: int, score: Any) -> float:
    if score is None:
        return math.nan
    value = _as_python(score)
    try:
        number = None if isinstance(value, str | bytes | bytearray) else float(value)
    except Exception:  # a type of the user's may raise any
        number = None
    if number is None:
        raise UserError(f"reward {name} returned {shown(score)} for completion {row}; it must return a number or None")
    if abs(number) > LARGEST:
        raise UserError(
            f"reward {name} returned {number} for completion {row}; it must return a finite number, or None for a response "
            "that cannot be scored"
        )
    return number

"""Recorded responses that are judged one by one, as token ids; with mismatched rows, each prompt also with another response."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoded, Encoder, recorded_rows
from rlhf_lightning.types import RawRows, Rows

MISMATCHED = "mismatched_response"
"""Key of a row: the response to another prompt of the same global batch."""


def with_mismatched(rows: RawRows) -> RawRows:
    """Give every row of a global batch the response of the next row, the last one that of the first; a single row gets none."""
    if len(rows) == 1:
        return rows
    return [{**row, MISMATCHED: rows[(i + 1) % len(rows)]["response"]} for i, row in enumerate(rows)]


def encode_labels(encoder: Encoder, rows: RawRows, max_length: int | None) -> tuple[Rows, Tensor, Tensor]:
    """Encode each row, and behind it its prompt with the mismatched response where the row has one.

    Returns:
        B rows; float32 [B], 1 for a good and 0 for a bad response; bool [B], True for mismatched rows.

    Raises:
        UserError: a label is neither true nor false.
    """
    encoded, groups, rewards, mismatched = list[Encoded](), list[int](), list[float](), list[bool]()
    for number, row in enumerate(rows):
        for column in ("response", MISMATCHED):
            if column in row:
                encoded += encoded_label(encoder, row, max_length, column)
                groups.append(number)
                rewards.append(_reward(row["label"]))
                mismatched.append(column == MISMATCHED)
    result = recorded_rows(
        [each.prompt for each in encoded],
        [each.response for each in encoded],
        groups,
        encoder.stop_tokens,
        int(encoder.tokenizer.pad_token_id),
        [each.mask for each in encoded],
    )
    return result, torch.tensor(rewards), torch.tensor(mismatched)


def encoded_label(
    encoder: Encoder, row: dict[str, Any], max_length: int | None, column: str = "response"
) -> list[Encoded]:
    """Encode one response of a row behind its prompt."""
    return encoder.together(row["prompt"], [row[column]], max_length)[1]


def _reward(label: Any) -> float:
    if label not in (True, False):  # also 1, 0, 1.0 and 0.0
        raise UserError(f"label is {label!r:.60}; set it to true for a good response, or to false for a bad one")
    return float(label)

"""Recorded preference pairs as token ids."""

from __future__ import annotations

import math
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoded, Encoder, recorded_rows
from rlhf_lightning.types import RawRows, Rows


def encode_pairs(encoder: Encoder, rows: RawRows, max_length: int | None) -> Rows:
    """Encode each preference pair as two rows with the same prompt: the chosen response, then the rejected one."""
    encoded = [response for row in rows for response in encoded_pair(encoder, row, max_length)]
    return recorded_rows(
        [each.prompt for each in encoded],
        [each.response for each in encoded],
        [i // 2 for i in range(len(encoded))],
        encoder.stop_tokens,
        int(encoder.tokenizer.pad_token_id),
        [each.mask for each in encoded],
    )


def encoded_pair(encoder: Encoder, row: dict[str, Any], max_length: int | None) -> list[Encoded]:
    """Encode the chosen and the rejected response of a row, both behind the same truncated prompt."""
    pair_probability(row)
    return encoder.together(row["prompt"], [row["chosen"], row["rejected"]], max_length)[1]


def pair_probability(row: dict[str, Any]) -> float:
    """Return the probability that the chosen response of a pair is the better one; 1 for a row that records none.

    Raises:
        UserError: it is below ½, above 1, or no number. `PreferenceData` reports the line, and swaps the two responses below ½.
    """
    value = row.get("probability") if "chosen" in row else None
    if value is None:
        return 1.0
    try:
        p = float(value)
    except (TypeError, ValueError):
        p = math.nan
    if not 0.5 <= p <= 1:
        raise UserError(
            f"probability is {value!r:.60}; chosen is the better response of a row: set probability to a number from 0.5 to 1, "
            "or read the rows by PreferenceData, which swaps the responses below 0.5"
        )
    return p

"""Recorded preference pairs as token ids."""

from __future__ import annotations

from typing import Any

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
    return encoder.together(row["prompt"], [row["chosen"], row["rejected"]], max_length)[1]

"""Token ids of recorded preference pairs."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.models.encoding import Encoded, Encoder, recorded_rows
from rlhf_lightning.types import RawRows, Rows


def encode_pairs(encoder: Encoder, rows: RawRows, max_length: int | None) -> Rows:
    """2 rows a preference pair: chosen, rejected; both behind the same prompt."""
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

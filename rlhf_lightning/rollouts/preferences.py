"""From rows of a data set to a `Rollout`: the policy writes and a reward scores, or recorded pairs are read."""

from __future__ import annotations

from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.types import RawRows, Rows


def encode_pairs(encoder: Encoder, rows: RawRows, max_length: int | None) -> Rows:
    """2 rows a preference pair: chosen, rejected; both behind the same prompt."""
    pairs = [encoder.together(row["prompt"], [row["chosen"], row["rejected"]], max_length) for row in rows]
    encoded = [response for _, responses in pairs for response in responses]
    return recorded_rows(
        [each.prompt for each in encoded],
        [each.response for each in encoded],
        [i // 2 for i in range(len(encoded))],
        encoder.stop_tokens,
        int(encoder.tokenizer.pad_token_id),
        [each.mask for each in encoded],
    )

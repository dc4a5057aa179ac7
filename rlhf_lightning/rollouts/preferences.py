"""From rows of a data set to a `Rollout`: the policy writes and a reward scores, or recorded pairs are read."""

from __future__ import annotations

from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.types import RawRows, Rows


def encode_pairs(encoder: Encoder, rows: RawRows, max_length: int | None) -> Rows:
    """2 rows a preference pair: chosen, rejected; both behind the same prompt."""
    prompts, responses = [], []
    for row in rows:
        prompt = encoder.prompt(row["prompt"])
        for column in ("chosen", "rejected"):
            kept, response = encoder.pair(prompt, encoder.response(row["prompt"], row[column]), max_length)
            prompts.append(kept)
            responses.append(response)
    groups = [i // 2 for i in range(len(prompts))]
    return recorded_rows(prompts, responses, groups, encoder.stop_tokens, int(encoder.tokenizer.pad_token_id))

"""Recorded preference pairs as token ids."""

from __future__ import annotations

from rlhf_lightning.models.encoding import Encoder, recorded_rows
from rlhf_lightning.types import RawRows, Rows


def encode_pairs(encoder: Encoder, rows: RawRows, max_length: int | None) -> Rows:
    """Encode each preference pair as two rows with the same prompt: the chosen response, then the rejected one."""
    prompts, responses = [], []
    for row in rows:
        prompt = encoder.prompt(row["prompt"])
        for column in ("chosen", "rejected"):
            prompt_ids, response_ids = encoder.pair(prompt, encoder.response(row["prompt"], row[column]), max_length)
            prompts.append(prompt_ids)
            responses.append(response_ids)
    groups = [i // 2 for i in range(len(prompts))]
    return recorded_rows(prompts, responses, groups, encoder.stop_tokens, int(encoder.tokenizer.pad_token_id))

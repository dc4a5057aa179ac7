"""Splits of rows by prompt, and rows that are there twice."""

from __future__ import annotations

import json
import random
from typing import Any

from rlhf_lightning.models.conversation import Conversation, learned_turns

Row = dict[str, Any]


def prompt_key(row: Row) -> str:
    """Identify the prompt of a row; of a conversation what comes before its first learned turn.

    Messages count where they were read as a conversation, or come without a prompt; beside a prompt they are any column.

    >>> prompt_key({"prompt": "hi "}) == prompt_key({"prompt": "hi", "answer": "1"})
    True
    """
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(messages, Conversation) or (prompt is None and messages is not None):
        turns = learned_turns([], messages)
        prompt = turns[0][0] if turns else messages
    return _key(prompt.strip() if isinstance(prompt, str) else [prompt, getattr(prompt, "tools", None)])


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def split_by_prompt(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows so that those of one prompt stay together.

    Args:
        rows: in the order of the file.
        fraction: of the rows to hold out, at least one unless it is 0.
        seed: of the order.

    Returns:
        The rows to learn from, and those that are held out, both in a random order.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    wanted = max(1, round(fraction * len(rows))) if fraction else 0
    keys = [prompt_key(row) for row in rows]
    sizes: dict[str, int] = {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    held: set[str] = set()
    count = 0
    for place in order:
        if count >= wanted:
            break
        if keys[place] not in held:
            held.add(keys[place])
            count += sizes[keys[place]]
    return [rows[i] for i in order if keys[i] not in held], [rows[i] for i in order if keys[i] in held]


def count_duplicates(rows: list[Row]) -> int:
    """Count the rows that are equal to an earlier one in every column."""
    keys = [_key([row, getattr(row.get("prompt"), "tools", None)]) for row in rows]
    return len(keys) - len(set(keys))


def count_overlap(train: list[Row], validation: list[Row]) -> int:
    """Count the validation rows whose prompt is one of the training rows."""
    if not validation:
        return 0
    learned = {prompt_key(row) for row in train}
    return sum(prompt_key(row) in learned for row in validation)

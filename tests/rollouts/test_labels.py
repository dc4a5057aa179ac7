"""Labelled responses become rows with rewards 1 and 0, and their mismatched rows depend on the global batch alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.rollouts.labels import MISMATCHED, encode_labels, with_mismatched
from rlhf_lightning.types import Rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "say", "response": "hello dog", "label": True},
    {"prompt": "please say", "response": "no", "label": False},
    {"prompt": "cat", "response": "the cat", "label": 1},
]


def texts(rows: Rows, encoder: Encoder) -> list[tuple[str, str]]:
    width = rows.prompt_mask.shape[1]
    prompts = encoder.decode(rows.tokens[:, :width], rows.prompt_mask)
    return list(zip(prompts, encoder.decode(rows.tokens[:, width:], rows.mask), strict=True))


def test_a_label_is_a_reward(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, [2])
    rows, rewards, mismatched = encode_labels(encoder, ROWS, None)
    assert texts(rows, encoder) == [("say", "hello dog"), ("please say", "no"), ("cat", "the cat")]
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert rows.groups.tolist() == [0, 1, 2]
    assert not mismatched.any()


def test_every_prompt_meets_the_response_to_the_next_one(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, [2])
    rows, rewards, mismatched = encode_labels(encoder, with_mismatched(ROWS), None)
    others = [("say", "no"), ("please say", "the cat"), ("cat", "hello dog")]
    assert [each for each, other in zip(texts(rows, encoder), mismatched.tolist(), strict=True) if other] == others
    assert mismatched.tolist() == [False, True] * 3
    assert rows.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert rewards.tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]


def test_a_single_row_has_no_mismatched_response() -> None:
    assert with_mismatched(ROWS[:1]) == ROWS[:1]
    assert all(MISMATCHED in row for row in with_mismatched(ROWS[:2]))


@pytest.mark.parametrize("label", ["yes", None, 0.5, 2])
def test_a_label_is_true_or_false(tokenizer: Any, label: object) -> None:
    with pytest.raises(UserError, match=r"label is .*; set it to true for a good response"):
        encode_labels(Encoder(tokenizer, [2]), [{**ROWS[0], "label": label}], None)
    assert torch.equal(encode_labels(Encoder(tokenizer, [2]), [{**ROWS[0], "label": 0.0}], None)[1], torch.zeros(1))

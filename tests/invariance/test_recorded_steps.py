"""The gradient of supervised fine-tuning and of reward modelling does not depend on how a step is cut, padded or ordered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.stages import RewardStage, SupervisedStage
from tests.holes import TURNS
from tests.invariance.conftest import (
    ROWS,
    Listed,
    Step,
    Taken,
    apart,
    assert_pieces_change_nothing,
    gradient_of_parts,
    padded,
    standing_still,
)

WORDS = ["hello", "no", "the little dog", "thank you", "cat"]
PROMPTS = ["please " * (i % 3) + f"say {i}" for i in range(ROWS)]
INSTRUCTIONS = [{"prompt": prompt, "completion": "dog " * (1 + i % 4)} for i, prompt in enumerate(PROMPTS)]
TALK = [{"role": role, "content": role * 2} for role in ("user", "assistant", "user", "assistant")]
CONVERSATIONS = [{"messages": TALK[: 2 + 2 * (i % 2)]} for i in range(ROWS)]
FIRST: list[Any] = [{"role": "user", "content": "say"}]
PAIRS_OF_TURNS = [
    {"prompt": FIRST, "chosen": TURNS[: 1 + 2 * (i % 3)], "rejected": TURNS[2 * (i % 2) :]} for i in range(ROWS)
]
PAIRS = [
    {"prompt": prompt, "chosen": "hello " * (1 + i % 3), "rejected": "no" * (i + 1), "margin": 0.3 * i}
    for i, prompt in enumerate(PROMPTS)
]
SOFT = [{**row, "probability": [1.0, 0.5, 0.8, None][i % 4]} for i, row in enumerate(PAIRS)]
RANKINGS = [{"prompt": prompt, "responses": WORDS[: 2 + i % 4]} for i, prompt in enumerate(PROMPTS)]
RATINGS = [{"prompt": prompt, "response": WORDS[i % 5], "rating": 0.7 * i - 2} for i, prompt in enumerate(PROMPTS)]
RATED = [
    {"prompt": row["prompt"], "rated": [(word, (i + k) % 3) for k, word in enumerate(row["responses"])]}
    for i, row in enumerate(RANKINGS)
]
STAGES: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    "completions": (SupervisedStage, {}, INSTRUCTIONS),
    "prompts too": (SupervisedStage, {"completion_only": False}, INSTRUCTIONS),
    "conversations": (SupervisedStage, {}, CONVERSATIONS),
    "whole conversations": (SupervisedStage, {"completion_only": False}, CONVERSATIONS),
    "pairs": (RewardStage, {"margin": False}, PAIRS),
    "pairs with margins, centred": (RewardStage, {"centering": 0.1}, PAIRS),
    "soft labels with margins": (RewardStage, {}, SOFT),
    "regression on soft labels": (RewardStage, {"objective": "regression"}, SOFT),
    "pairs of several turns": (RewardStage, {"margin": False}, PAIRS_OF_TURNS),
    "rankings": (RewardStage, {}, RANKINGS),
    "rankings, centred": (RewardStage, {"centering": 0.1}, RANKINGS),
    "ratings with ties": (RewardStage, {}, RATED),
    "regression on all responses of a prompt": (RewardStage, {"objective": "regression"}, RATED),
    "regression": (RewardStage, {"objective": "regression"}, RATINGS),
}


def stage_of(name: str, model: ModelConfig) -> tuple[Any, list[Any]]:
    kind, options, rows = STAGES[name]
    return kind(model, optimizer=standing_still, **options), rows


@pytest.mark.parametrize("name", STAGES)
def test_lightning_gathers_the_same_gradient_from_any_number_of_parts(
    name: str, model: ModelConfig, step: Step
) -> None:
    whole, *cuts = [step(*stage_of(name, model), ROWS // parts, parts) for parts in (1, 2, 8)]
    for cut in cuts:
        assert apart(whole, cut) < 1e-6


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("pack", [True, False])
def test_pieces_of_a_pass_change_neither_gradient_nor_metrics(
    name: str, pack: bool, model: ModelConfig, taken: Callable[..., Taken]
) -> None:
    given = replace(model, pack=pack)
    whole, cut = taken(*stage_of(name, given), ROWS), taken(*stage_of(name, given), ROWS // 2, 2, 25)
    assert_pieces_change_nothing(whole, cut)


@pytest.mark.parametrize("name", STAGES)
def test_neither_parts_nor_padding_nor_order_change_the_gradient(name: str, model: ModelConfig, step: Step) -> None:
    stage, rows = stage_of(name, model)
    whole = step(stage, rows, ROWS)
    by_length = sorted(rows, key=lambda row: len(str(row)))
    for other, parts in ((rows, 1), (rows[::-1], 2), (by_length, 4), (by_length[::-1], 8)):
        stage.trainer.accumulate_grad_batches = parts
        loader = stage.train_loader(Listed(other, ROWS // parts).train_dataloader())
        given = (padded(part, 3, 2) for part in loader)
        assert apart(whole, gradient_of_parts(stage, given, parts)) < 1e-6


def test_a_part_with_nothing_to_compare_gives_a_gradient_of_zero(model: ModelConfig, step: Step) -> None:
    stage, rows = stage_of("rankings", model)
    step(stage, rows, ROWS)
    part = stage.encode([{"prompt": "say", "responses": ["dog"]}])
    found = gradient_of_parts(stage, [part], 1)
    assert torch.equal(found, torch.zeros_like(found))


def test_conversations_are_rows_with_holes(model: ModelConfig, step: Step) -> None:
    stage, rows = stage_of("conversations", model)
    step(stage, rows, ROWS)
    batch = stage.encode(rows)
    assert len(batch) == ROWS
    assert (batch.mask.sum(-1) < batch.reach).any()

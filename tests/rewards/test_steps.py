"""Rewards for the steps of a response: where they fall, what they sum to, and what is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from completions import completions
from recorded_generation import generated, reward_model

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import (
    FunctionReward,
    LengthReward,
    Reward,
    RewardOutput,
    StepReward,
    WeightedSum,
    reward_scores,
)
from rlhf_lightning.rollouts.pipeline import concatenate, joined_scores
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.types import Completions

TEXTS = ["one\n\ntwo two\n\n\U0001f642 three", "one\n\n", "", "\n\n\n\nx"]
STEPS = [["one\n\n", "two two\n\n", "\U0001f642 three"], ["one\n\n"], [""], ["\n\n", "\n\n", "x"]]


def lengths(steps: list[list[str]]) -> list[list[float]]:
    return [[float(len(text)) for text in row] for row in steps]


@pytest.fixture
def stage(tmp_path: Path) -> RewardStage:
    made = RewardStage(ModelConfig(reward_model(tmp_path, "byte_level", None)))
    made.text.load()
    return made


def answers(stage: RewardStage) -> Completions:
    return generated(stage, "p", [stage.text.encoder.response("p", text) for text in TEXTS])


def test_each_score_falls_on_the_last_token_of_its_step(stage: RewardStage) -> None:
    rows, seen = answers(stage), []

    def rate(steps: list[list[str]]) -> list[list[float]]:
        seen.extend(steps)
        return lengths(steps)

    found = reward_scores(StepReward(rate), rows)  # type: ignore[arg-type]
    assert ["".join(row) for row in seen] == TEXTS
    assert seen[:3] == STEPS[:3]
    assert found.rewards.tolist() == [float(len(text)) for text in TEXTS]
    assert found.step_rewards is not None
    assert torch.equal(found.step_rewards.sum(-1), found.rewards)
    tokenizer, width = stage.text.encoder.tokenizer, rows.prompt_mask.shape[1]
    for row, text in enumerate(TEXTS):
        places = found.step_rewards[row].nonzero().flatten().tolist()
        for place, end in zip(places, torch.tensor([len(step) for step in seen[row]]).cumsum(0).tolist(), strict=False):
            before = tokenizer.decode(rows.tokens[row, width : width + place + 1], skip_special_tokens=True)
            assert before == text[:end]
            without = tokenizer.decode(rows.tokens[row, width : width + place], skip_special_tokens=True)
            assert (
                without[:end] != text[:end] or place == rows.mask[row].sum() - 1
            )  # the stop token is of the last step
    assert found.step_rewards[0, rows.mask[0].sum() - 1] == len(STEPS[0][2])


def test_a_step_per_turn_of_the_assistant(stage: RewardStage) -> None:
    tokenizer = stage.text.encoder.tokenizer
    ids = [tokenizer(text)["input_ids"] for text in ("the answer", " user asked", " hello")]
    stop = tokenizer.eos_token_id
    rows = generated(stage, "p", [[*ids[0], stop, *ids[1], *ids[2], stop], [*ids[2], stop]])
    first, second = len(ids[0]) + 1, len(ids[0]) + 1 + len(ids[1])
    mask = rows.mask.clone()
    mask[0, first:second] = False  # which the policy read
    rows = replace(rows, mask=mask)
    seen: list[Any] = []
    found = reward_scores(
        StepReward(lambda steps: seen.extend(steps) or [[1.0, 2.0][: len(row)] for row in steps], split=None), rows
    )
    assert seen == [["the answer", " hello"], [" hello"]]
    assert found.rewards.tolist() == [3.0, 1.0]
    assert found.step_rewards is not None
    assert {int(c): float(found.step_rewards[0, c]) for c in found.step_rewards[0].nonzero()} == {
        first - 1: 1.0,
        int(mask[0].nonzero().max()): 2.0,
    }


def test_weighted_sums_add_steps_and_leave_other_scores_for_the_end(stage: RewardStage) -> None:
    rows = answers(stage)
    steps = StepReward(lambda steps: [[1.0] * len(row) for row in steps])
    both = WeightedSum({"steps": steps, "length": LengthReward(0, penalty=1.0)}, {"steps": 0.5, "length": 2.0})
    found, alone = reward_scores(both, rows), reward_scores(steps, rows).step_rewards
    assert found.step_rewards is not None
    assert alone is not None
    torch.testing.assert_close(found.step_rewards, 0.5 * alone)
    torch.testing.assert_close(found.rewards, (0.5 * alone).sum(-1) - 2.0 * rows.mask.sum(-1))
    twice = reward_scores(WeightedSum({"one": steps, "two": steps}, {"two": -0.5}), rows)
    torch.testing.assert_close(twice.step_rewards, 0.5 * alone)


def test_a_missing_step_score_leaves_the_response_without_a_score(stage: RewardStage) -> None:
    rows = answers(stage)
    values = [[1.0, None, 2.0], [math.nan], None, [1.0] * 9]
    found = reward_scores(StepReward(lambda steps: [*values[:3], [0.0] * len(steps[3])]), rows)
    assert [math.isnan(x) for x in found.rewards] == [True, True, True, False]
    with pytest.raises(UserError, match=r"FunctionReward, completion 3, returned 9 scores for \d steps"):
        reward_scores(StepReward(lambda steps: [[1.0] * len(row) for row in steps[:3]] + [values[3]]), rows)
    with pytest.raises(UserError, match=r"FunctionReward, completion 0, returned inf for step 1"):
        reward_scores(StepReward(lambda steps: [[1.0, math.inf, 1.0], *[[0.0] * len(row) for row in steps[1:]]]), rows)


def test_steps_need_a_step_reward() -> None:
    class Direct(Reward):
        per_step = True

        def __call__(self, completions: Completions) -> Any:
            return [[1.0]] * len(completions)

    with pytest.raises(
        UserError, match=r"reward Direct scores steps and the responses have none; wrap it in StepReward"
    ):
        reward_scores(Direct(), completions(["a"]))
    found = reward_scores(Direct(), replace(completions(["a b", "c"]), ends=[[1], [0]]))
    assert found.step_rewards is not None
    assert found.step_rewards.nonzero().tolist() == [[0, 1], [1, 0]]
    with pytest.raises(UserError, match=r"completion 1 has steps that end in the columns \[9\]"):
        reward_scores(Direct(), replace(completions(["a b", "c"]), ends=[[1], [9]]))
    with pytest.raises(UserError, match="has the parameter 'steps', and responses are split in a StepReward alone"):
        FunctionReward(lambda steps: []).check_columns((), "train data")
    StepReward(FunctionReward(lambda steps: [])).check_columns((), "train data")
    with pytest.raises(UserError, match=r"StepReward\.split is empty"):
        StepReward(lambda steps: [], split="").check()


def test_chunks_keep_their_steps_and_components() -> None:
    class Partial(Reward):
        def __call__(self, completions: Completions) -> RewardOutput:
            texts = completions.responses
            steps = None if "c" in texts else torch.eye(8)[: len(texts)]
            return RewardOutput([1.0] * len(texts), {texts[0]: [2.0] * len(texts)}, steps)

    chunks = [completions(["a b", "b"]), completions(["c"])]
    joined = joined_scores([reward_scores(Partial(), chunk) for chunk in chunks])
    assert joined.components == {"a b": [2.0, 2.0, None], "c": [None, None, 2.0]}
    assert joined.step_rewards is not None
    assert joined.step_rewards.nonzero().tolist() == [[0, 0], [1, 1]]
    whole = concatenate([replace(chunk, ends=[[0]] * len(chunk), steps=[["x"]] * len(chunk)) for chunk in chunks])
    assert whole.ends == [[0]] * 3
    assert whole.steps == [["x"]] * 3

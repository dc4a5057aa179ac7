"""A rollout that is written in parts is scored beside the writing, and is the same rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event, current_thread
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.models.reference import CopiedReference
from rlhf_lightning.rewards import FunctionReward, ModelReward, WeightedSum
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.collector import Collector
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.types import Completions

PROMPTS: list[dict[str, Any]] = [
    {"prompt": text} for text in ("say", "please say hello", "cat", "the little dog", "no")
]


class Judge(Reward):
    """Scores by length, tells a part, and waits for what it is told to wait for."""

    scores_while_generating = True

    def __init__(self, wait_for: Event | None = None, fail: bool = False) -> None:
        self.wait_for, self.fail = wait_for, fail
        self.asked: list[tuple[int, str]] = []

    def __call__(self, completions: Completions) -> Sequence[float | None]:
        self.asked.append((len(completions), current_thread().name))
        if self.wait_for is not None and len(self.asked) == 1:
            assert self.wait_for.wait(30), "the next part was not begun"
        if self.fail and len(self.asked) == 2:
            raise ValueError("no verdict")
        self.last = [float(len(response)) for response in completions.responses]
        return self.last

    def parts(self) -> dict[str, list[float | None]]:
        return {"length": list(self.last)}


@pytest.fixture
def collector(tiny_model_folder: Callable[[str], str], tokenizer: Any) -> Collector:
    config = ModelConfig(tiny_model_folder("llama"))
    response_generator = ResponseGenerator(Policy(load_causal_lm(config)), Sampler(6), Encoder(tokenizer, [2]))
    return Collector(response_generator, Judge(), CopiedReference(load_causal_lm(config), "full"), 1.0)


def collected(collector: Collector) -> Any:
    return collector.online(PROMPTS, 2, False, torch.Generator().manual_seed(0))


def test_a_part_is_scored_while_the_next_is_written(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, write, calls = Event(), ResponseGenerator.generate, []

    def noted(self: ResponseGenerator, rows: Any, *args: Any) -> Completions:
        calls.append(len(rows))
        if len(calls) == 2:
            begun.set()
        return write(self, rows, *args)

    monkeypatch.setattr(ResponseGenerator, "generate", noted)
    judge = Judge(wait_for=begun)
    collected(replace(collector, reward=judge, overlap=3))
    assert calls == [2, 2, 1]
    assert [rows for rows, _ in judge.asked] == [4, 4, 2]
    assert current_thread().name not in {name for _, name in judge.asked}


def test_scores_groups_and_metrics_are_of_the_whole(collector: Collector) -> None:
    overlapped = replace(collector, overlap=3)
    rollout = collected(overlapped)
    assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    width = rollout.prompt_mask.shape[1]
    decoded = overlapped.response_generator.encoder.decode(rollout.tokens[:, width:], rollout.mask)
    assert rollout.rewards.tolist() == [float(len(text)) for text in decoded]
    prompts = overlapped.response_generator.encoder.decode(rollout.tokens[:, :width], rollout.prompt_mask)
    assert prompts == [row["prompt"] for row in PROMPTS for _ in range(2)]
    assert overlapped.metrics["reward/length"] == pytest.approx(float(rollout.rewards.mean()))
    again = collected(replace(collector, overlap=3))
    assert torch.equal(again.tokens, rollout.tokens)
    # what sampling recorded belongs to the tokens it stands beside
    with torch.no_grad():
        found = overlapped.response_generator.policy(rollout).logprobs
    torch.testing.assert_close(found, rollout.logprobs, atol=1e-5, rtol=0)


def test_more_parts_than_prompts_are_as_many_as_prompts(collector: Collector) -> None:
    judge = Judge()
    collected(replace(collector, reward=judge, overlap=9))
    assert [rows for rows, _ in judge.asked] == [2] * 5


def test_what_a_reward_raises_beside_the_writing_stops_the_run(collector: Collector) -> None:
    with pytest.raises(UserError, match="reward Judge raised ValueError: no verdict; it was given 4 completions"):
        collected(replace(collector, reward=Judge(fail=True), overlap=2))


def test_a_reward_with_weights_of_its_own_is_not_asked_beside_the_writing() -> None:
    given: dict[str, Any] = {"policy": ModelConfig("none"), "algorithm": REINFORCE(responses_per_prompt=2)}
    function = FunctionReward("math.sqrt")
    assert PolicyStage(**given, reward=WeightedSum({"f": function}), overlap=2).roles.overlap == 2
    for reward in (ModelReward("none"), WeightedSum({"f": function, "m": ModelReward("none")})):
        with pytest.raises(UserError, match=r"overlap is 2: .* FunctionReward and ServerReward"):
            PolicyStage(**given, reward=reward, overlap=2)
    with pytest.raises(UserError, match="overlap is 0"):
        PolicyStage(**given, reward=function, overlap=0)

"""A rollout that is generated in chunks is scored meanwhile, and is the same rollout."""

from __future__ import annotations

from collections.abc import Callable
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
from rlhf_lightning.rewards import FunctionReward, ModelReward, RewardOutput, WeightedSum
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.collector import Collector
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.types import Completions

PROMPTS: list[dict[str, Any]] = [
    {"prompt": text} for text in ("say", "please say hello", "cat", "the little dog", "no")
]


class Judge(Reward):
    """Scores by length, has one component, and waits for an event in its first call."""

    scores_while_generating = True

    def __init__(self, wait_for: Event | None = None, fail: bool = False) -> None:
        self.wait_for, self.fail = wait_for, fail
        self.calls: list[tuple[int, str]] = []

    def __call__(self, completions: Completions) -> RewardOutput:
        self.calls.append((len(completions), current_thread().name))
        if self.wait_for is not None and len(self.calls) == 1:
            assert self.wait_for.wait(30), "the next chunk was not started"
        if self.fail and len(self.calls) == 2:
            raise ValueError("no verdict")
        scores = [float(len(response)) for response in completions.responses]
        return RewardOutput(scores, {"length": list(scores), **({"late": scores} if len(self.calls) > 1 else {})})


@pytest.fixture
def collector(tiny_model_folder: Callable[[str], str], tokenizer: Any) -> Collector:
    config = ModelConfig(tiny_model_folder("llama"))
    response_generator = ResponseGenerator(Policy(load_causal_lm(config)), Sampler(6), Encoder(tokenizer, [2]))
    return Collector(response_generator, Judge(), CopiedReference(load_causal_lm(config), "full"), 1.0)


def collected(collector: Collector) -> Any:
    return collector.online(PROMPTS, 2, False, Randomness(0, 0, tuple(range(len(PROMPTS)))))


def test_a_chunk_is_scored_while_the_next_is_generated(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    started, generate, calls = Event(), ResponseGenerator.generate, []

    def counting(self: ResponseGenerator, rows: Any, *args: Any, **options: Any) -> Completions:
        calls.append(len(rows))
        if len(calls) == 2:
            started.set()
        return generate(self, rows, *args, **options)

    monkeypatch.setattr(ResponseGenerator, "generate", counting)
    judge = Judge(wait_for=started)
    collected(replace(collector, reward=judge, overlap=3))
    assert calls == [2, 2, 1]
    assert [rows for rows, _ in judge.calls] == [4, 4, 2]
    assert current_thread().name not in {name for _, name in judge.calls}


def test_scores_groups_and_metrics_are_those_of_the_whole_rollout(collector: Collector) -> None:
    overlapped = replace(collector, overlap=3)
    rollout = collected(overlapped)
    assert rollout.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    width = rollout.prompt_mask.shape[1]
    decoded = overlapped.response_generator.encoder.decode(rollout.tokens[:, width:], rollout.mask)
    assert rollout.rewards.tolist() == [float(len(text)) for text in decoded]
    prompts = overlapped.response_generator.encoder.decode(rollout.tokens[:, :width], rollout.prompt_mask)
    assert prompts == [row["prompt"] for row in PROMPTS for _ in range(2)]
    assert overlapped.metrics["reward/length"] == pytest.approx(float(rollout.rewards.mean()))
    repeated = collected(replace(collector, overlap=3))
    assert torch.equal(repeated.tokens, rollout.tokens)
    # recorded log-probabilities belong to the tokens of the same row
    with torch.no_grad():
        logprobs = overlapped.response_generator.policy(rollout).logprobs
    torch.testing.assert_close(logprobs, rollout.logprobs, atol=1e-5, rtol=0)


def test_there_are_no_more_chunks_than_prompts(collector: Collector) -> None:
    judge = Judge()
    collected(replace(collector, reward=judge, overlap=9))
    assert [rows for rows, _ in judge.calls] == [2] * 5


def test_an_error_of_the_scoring_thread_stops_the_run(collector: Collector) -> None:
    with pytest.raises(UserError, match="reward Judge raised ValueError: no verdict; the call had 4 completions"):
        collected(replace(collector, reward=Judge(fail=True), overlap=2))


def test_overlap_refuses_rewards_that_are_models() -> None:
    options: dict[str, Any] = {"policy": ModelConfig("none"), "algorithm": REINFORCE(responses_per_prompt=2)}
    function = FunctionReward("math.sqrt")
    assert PolicyStage(**options, reward=WeightedSum({"f": function}), overlap=2).roles.overlap == 2
    for reward in (ModelReward("none"), WeightedSum({"f": function, "m": ModelReward("none")})):
        with pytest.raises(UserError, match=r"overlap is 2: .*FunctionReward, ServerReward"):
            PolicyStage(**options, reward=reward, overlap=2)
    with pytest.raises(UserError, match="overlap is 0"):
        PolicyStage(**options, reward=function, overlap=0)

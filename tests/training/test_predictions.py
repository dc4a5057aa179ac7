"""The best and the worst response to a prompt become a row of `PreferenceData`, encoded as it was generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.conversation import Conversation
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_encoder
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import PolicyStage, SupervisedStage
from rlhf_lightning.training.predictions import Predictor, PreferencePairs


@pytest.fixture
def config(tiny_model_folder: Callable[[str], str]) -> ModelConfig:
    return ModelConfig(name_or_path=tiny_model_folder("llama"))


@pytest.fixture
def encoder(config: ModelConfig) -> Encoder:
    return load_encoder(config)


def test_the_best_and_the_worst_are_paired(encoder: Encoder) -> None:
    pairs = PreferencePairs()
    pairs.add(encoder, "say", ["a", "b", "c", "d"], [0.5, 2.0, None, -1.0])
    assert pairs.take() == [
        {"prompt": "say", "chosen": "b", "rejected": "d", "score_chosen": 2.0, "score_rejected": -1.0}
    ]
    assert pairs.take() == []
    assert (pairs.made, dict(pairs.skipped)) == (1, {})


@pytest.mark.parametrize(
    ("responses", "scores", "reason"),
    [
        (["a", "b"], [1.0, 1.0], "tied"),
        (["a", "a"], [1.0, 0.0], "tied"),
        (["a", "b"], [1.0, None], "unscored"),
        (["a", "b"], [None, None], "unscored"),
        (["a", " "], [1.0, 0.0], "empty"),
    ],
)
def test_prompts_without_a_pair_are_counted(encoder: Encoder, responses: Any, scores: Any, reason: str) -> None:
    pairs = PreferencePairs()
    pairs.add(encoder, "say", responses, scores)
    assert pairs.take() == []
    assert (pairs.made, dict(pairs.skipped)) == (0, {reason: 1})


def test_a_conversation_keeps_its_tools(encoder: Encoder) -> None:
    pairs, tools = PreferencePairs(), [{"name": "add"}]
    prompt = Conversation([{"role": "user", "content": "hi"}], tools, {"enable_thinking": False})
    pairs.add(encoder, prompt, ["a", "b"], [1.0, 0.0])
    row = pairs.take()[0]
    assert row["prompt"] == [{"role": "user", "content": "hi"}]
    assert (row["tools"], row["chat_template_kwargs"]) == (tools, {"enable_thinking": False})


def test_rows_are_encoded_as_they_were_generated(config: ModelConfig, encoder: Encoder) -> None:
    responder = ResponseGenerator(Policy(load_causal_lm(config)).eval(), Sampler(6), encoder)
    seen: list[Any] = []

    def lengths(responses: list[str]) -> list[float]:
        seen.extend(responses)
        return [float(len(response)) for response in responses]

    predictor = Predictor(1.0, 4, as_reward(lengths))
    rows: Any = [{"prompt": "say", "n": 1}, {"prompt": [{"role": "user", "content": "hello"}], "n": 2}]
    predicted = predictor.predict(responder, rows, Randomness(0, 0, (0, 1)))
    assert [row["n"] for row in predicted] == [1] * 4 + [2] * 4
    assert [row["reward"] for row in predicted] == [float(len(text)) for text in seen]
    assert [row["response"] for row in predicted] == seen
    assert predictor.pairs is not None
    made = predictor.pairs.take()
    assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
    for number, row in enumerate(made):
        own = [each for each in predicted if each["n"] == number + 1]
        for name, pick in (("chosen", max), ("rejected", min)):
            wanted = pick(own, key=lambda each: each["reward"])
            assert row[f"score_{name}"] == wanted["reward"]
            assert encoder.response(row["prompt"], row[name]) == encoder.generated(row["prompt"], wanted["response"])


def test_options_that_contradict_each_other_are_refused(config: ModelConfig) -> None:
    reward = as_reward(lambda responses: [0.0] * len(responses))
    for options, expected in (
        ({"predict_responses": 4}, "predict_temperature is 0"),
        ({"predict_responses": 0}, "at least 1"),
        ({"predict_temperature": -1.0}, r"set it to 0 \(greedy\) or a positive number"),
    ):
        for stage in (SupervisedStage, lambda config, **own: PolicyStage(config, DPO(), reward, **own)):
            with pytest.raises(UserError, match=expected):
                stage(config, **options)  # type: ignore[operator]
    with pytest.raises(UserError, match="predict_score is true and there is no reward"):
        PolicyStage(config, DPO(), predict_score=True)

"""A process reward model: where it reads the label of a step, against transformers' own forward pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_generation import generated, reward_model
from transformers import AutoModelForTokenClassification, AutoTokenizer, LlamaConfig

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import ProcessReward, StepReward, reward_scores
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.types import Completions

PROMPT = "the answer"
TEXTS = ["one\n\ntwo two\n\nthree", "one\n\n", "hello there, hello, what is it, the answer", "x\n\ny"]
STEPS = [["one", "two two", "three"], ["one"], ["hello there, hello, what is it, the answer"], ["x", "y"]]


def process_model(folder: Path, labels: int = 2) -> str:
    """A token classifier with random weights and the tokenizer of `reward_model`."""
    reward_model(folder, "byte_level", None)
    config = LlamaConfig.from_pretrained(folder)
    config.num_labels = labels
    torch.manual_seed(2)
    model = AutoModelForTokenClassification.from_config(config)
    model.score.weight.data *= 0.6  # so that probabilities are neither all 0 nor 1
    model.save_pretrained(folder)
    return str(folder)


def answers(folder: str) -> Completions:
    stage = RewardStage(ModelConfig(str(Path(folder) / "policy")))
    stage.text.load()
    return generated(stage, PROMPT, [stage.text.encoder.response(PROMPT, text) for text in TEXTS])


def by_transformers(folder: str, separator: str) -> list[list[list[float]]]:
    """Logits at the last token of each step: prompt, then each step and the separator, as `PRMTrainer` tokenises."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for steps in STEPS:
        ids = tokenizer(PROMPT)["input_ids"]
        ends = []
        for step in steps:
            ids = ids + tokenizer(step, add_special_tokens=False)["input_ids"]
            ids = ids + tokenizer(separator, add_special_tokens=False)["input_ids"]
            ends.append(len(ids) - 1)
        with torch.no_grad():
            found.append(model(torch.tensor([ids])).logits[0, ends].tolist())
    return found


def loaded(folder: str, **options: Any) -> StepReward:
    reward = StepReward(ProcessReward(folder, **options))
    reward.check()
    reward.load(torch.device("cpu"))
    return reward


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"pack": False}, {"max_tokens_per_batch": 16}])
def test_the_score_of_a_step_is_the_probability_of_its_label(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = process_model(tmp_path)
    found = reward_scores(loaded(folder, **options), answers(folder))
    expected = [torch.tensor(row).softmax(-1)[:, 1].tolist() for row in by_transformers(folder, "\n")]
    assert found.rewards.tolist() == pytest.approx([sum(row) for row in expected], abs=1e-5)
    assert found.step_rewards is not None
    placed = [row[row != 0].tolist() for row in found.step_rewards]
    assert placed == [pytest.approx(row, abs=1e-5) for row in expected]
    assert max(map(max, expected)) - min(map(min, expected)) > 0.1


def test_label_offset_and_separator(tmp_path: Path) -> None:
    folder = process_model(tmp_path, labels=3)
    found = reward_scores(loaded(folder, label=2, offset=0.25, separator=" hello"), answers(folder))
    expected = [torch.tensor(row).softmax(-1)[:, 2] - 0.25 for row in by_transformers(folder, " hello")]
    assert found.rewards.tolist() == pytest.approx([float(row.sum()) for row in expected], abs=1e-5)


def test_a_single_output_is_a_value(tmp_path: Path) -> None:
    folder = process_model(tmp_path, labels=1)
    found = reward_scores(loaded(folder), answers(folder))
    assert found.rewards.tolist() == pytest.approx(
        [sum(x for (x,) in row) for row in by_transformers(folder, "\n")], abs=1e-4
    )


def test_a_response_that_does_not_fit_has_no_score(tmp_path: Path) -> None:
    folder = process_model(tmp_path)
    whole = reward_scores(loaded(folder), answers(folder)).rewards
    short = reward_scores(loaded(folder, max_length=8), answers(folder)).rewards
    assert [math.isnan(x) for x in short.tolist()] == [True, False, True, False]
    assert not whole.isnan().any()


def test_it_needs_steps(tmp_path: Path) -> None:
    folder = process_model(tmp_path)
    reward = ProcessReward(folder)
    reward.load(torch.device("cpu"))
    with pytest.raises(
        UserError, match="ProcessReward scores steps and the responses have none; wrap it in StepReward"
    ):
        reward_scores(reward, answers(folder))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label": 2}, r"ProcessReward.label is 2, and .* has 2 labels; set it to a number from 0 to 1"),
        ({"separator": ""}, "ProcessReward.separator is empty"),
        ({"batch_size": 0}, "ProcessReward.batch_size is 0"),
    ],
)
def test_options_that_cannot_work(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    folder = process_model(tmp_path)
    with pytest.raises(UserError, match=expected):
        ProcessReward(folder, **options).check()


def test_another_model_is_one_line_before_weights_are_loaded(tmp_path: Path) -> None:
    folder = Path(reward_model(tmp_path, "byte_level", None))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(
        UserError, match="is a LlamaForSequenceClassification, no token classifier; set name_or_path to a"
    ):
        ProcessReward(str(folder)).check()

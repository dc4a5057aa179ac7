"""What each reward says, and what is said of a reward that misbehaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from completions import completions
from jsonargparse import ArgumentParser
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm, load_reward_model
from rlhf_lightning.models.reward_model import set_normalization
from rlhf_lightning.rewards import (
    FunctionReward,
    LengthReward,
    ModelReward,
    NumberReward,
    PatternReward,
    RandomReward,
    Reward,
    WeightedSum,
    score,
)
from rlhf_lightning.types import Completions


def test_a_pattern() -> None:
    assert PatternReward("ab+", matched=2.0, unmatched=-1.0)(completions(["xabbx", "ax"])) == [2.0, -1.0]
    with pytest.raises(UserError, match="no regular expression"):
        PatternReward("(").check()


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("so #### 1,234", "it is #### 1234", 1.0),
        ("so #### $-3.50", "#### -3.5", 1.0),
        ("#### 1 then #### 2", "#### 2", 1.0),
        ("#### 5", "#### 2", 0.25),
        ("the answer is 2", "#### 2", 0.0),
        ("#### 2", 2, 1.0),
        ("#### 0.00002", 2e-5, 1.0),
        ("#### 20", 1e20, 0.25),  # which Python writes as 1e+20
        ("#### 2.5e3", 2500, 1.0),
        ("#### .5", "#### 0.5", 1.0),
        ("#### 2", "unknown", None),
    ],
)
def test_the_number_after_a_marker(response: str, answer: Any, expected: float | None) -> None:
    assert NumberReward(marker_reward=0.25)(completions([response], answer=[answer])) == [expected]


def test_number_options() -> None:
    rows = completions(["the answer is 7."], answer=["7"], solution=["8"])
    assert NumberReward(fallback_last=True)(rows) == [1.0]
    assert NumberReward(fallback_last=True, column="solution")(rows) == [0.0]
    assert NumberReward(fallback_last=True, column="solution", tolerance=1.0)(rows) == [1.0]
    assert NumberReward(marker="is", column="answer")(rows) == [1.0]
    with pytest.raises(UserError, match=r"no column of the data; expected one of: answer, solution"):
        NumberReward(column="result")(rows)


def test_length_in_three_units() -> None:
    rows = completions(["one two three four", "one"])
    assert LengthReward(3, penalty=0.5)(rows) == [-0.5, 0.0]
    assert LengthReward(2, penalty=0.5, unit="words")(rows) == [-1.0, 0.0]
    assert LengthReward(3, penalty=1.0, unit="characters")(rows) == [-15.0, 0.0]


def test_noise_goes_on_from_its_state() -> None:
    reward, rows = RandomReward(seed=3), completions(["a"] * 400)
    state = reward.state_dict()
    first = reward(rows)
    assert reward(rows) != first
    reward.load_state_dict(state)
    assert reward(rows) == first
    assert abs(sum(first) / 400) < 0.2
    assert RandomReward(seed=4)(rows) != first


FUNCTIONS = """
import asyncio

def plain(responses):
    return [float(len(text)) for text in responses]

async def slow(responses, prompts, answer, scale=1.0):
    await asyncio.sleep(0)
    return [scale * len(p) if a else None for p, a in zip(prompts, answer)]

def everything(**columns):
    return [len(columns)] * len(columns["responses"])

def sorts(responses):
    responses.sort()
    return [0.0] * len(responses)

def wants(responses, solution):
    return [0.0] * len(responses)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores_of_mine.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.mark.usefixtures("functions")
def test_functions_plain_async_and_with_columns(functions: Path) -> None:
    rows = completions(["ab", "c"], ["pp", "q"], answer=[1, 0])
    for path in ("scores_of_mine.plain", f"{functions}/scores_of_mine.py:plain"):
        assert FunctionReward(path)(rows) == [2.0, 1.0]
    assert FunctionReward("scores_of_mine.slow", {"scale": 3.0})(rows) == [6.0, None]
    assert FunctionReward("scores_of_mine.everything")(rows) == [3, 3]
    with pytest.raises(UserError, match="wants 'solution'"):
        FunctionReward("scores_of_mine.wants")(rows)
    FunctionReward("scores_of_mine.everything").check_columns({"answer"}, "train data")
    FunctionReward("scores_of_mine.slow").check_columns({"answer"}, "train data")  # whose scale has a default
    FunctionReward("scores_of_mine.wants", {"solution": 1}).check_columns((), "train data")
    with pytest.raises(UserError, match=r"names 'scal', which is no parameter of .*; did you mean 'scale'\?"):
        FunctionReward("scores_of_mine.slow", {"scal": 3.0}).check()
    last = completions(["b", "a"])
    both = WeightedSum({"sorts": FunctionReward("scores_of_mine.sorts"), "found": PatternReward("a")})
    assert both(last) == [0.0, 1.0], "a function changed what the next reward reads"


def test_a_file_may_hold_dataclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "json.py").write_text(  # a name that is taken
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Rule:\n    value: float\n\n"
        "def score(responses):\n    return [Rule(2.0).value for _ in responses]\n"
    )
    assert FunctionReward("~/json.py:score")(completions(["a"])) == [2.0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("scores_of_mine.plane", "did you mean 'plain'"),
        ("nowhere.plain", "no module 'nowhere'"),
        ("plain", "names no module"),
        ("absent.py:plain", "absent.py is not there"),
        ("notes.txt:plain", "notes.txt is no Python file"),
        ("broken.py:plain", r"broken.py:1 is no Python: "),
        ("fails.plain", "fails.plain cannot be imported: ZeroDivisionError"),
    ],
)
@pytest.mark.usefixtures("functions")
def test_functions_that_cannot_be_imported(path: str, expected: str) -> None:
    for name, text in {"notes.txt": "", "broken.py": "def plain(", "fails.py": "1 / 0"}.items():
        Path(name).write_text(text)
    with pytest.raises(UserError, match=expected):
        FunctionReward(path).check()


def test_a_weighted_sum_and_its_parts() -> None:
    parts = {"found": PatternReward("a"), "short": LengthReward(1, penalty=1.0)}
    reward = WeightedSum(parts, {"short": 0.5})
    assert reward(completions(["a b", "c"])) == [0.5, 0.0]
    assert reward.parts() == {"found": [1.0, 0.0], "short": [-1.0, 0.0]}
    unknown = WeightedSum({"number": NumberReward(), "found": PatternReward("a")})
    assert unknown(completions(["#### 1 a", "a"], answer=["1", "x"])) == [2.0, None]
    with pytest.raises(UserError, match="did you mean 'short'"):
        WeightedSum(parts, {"shot": 1.0})
    with pytest.raises(UserError, match="empty"):
        WeightedSum({})


class Says(Reward):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, completions: Completions) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_scores_that_are_right() -> None:
    assert score(Says(torch.tensor([1.0, 2.0])), completions(["a", "b"])).tolist() == [1.0, 2.0]
    found = score(Says([None, 3]), completions(["a", "b"]))
    assert math.isnan(found[0])
    assert found[1] == 3.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (KeyError("oops"), "raised KeyError: 'oops'"),
        ([1.0], "returned 1 scores for 2"),
        (None, "returned nothing"),
        (0.5, "returned 0.5; it must return 2 scores"),
        (torch.tensor(0.5), "returned 0.5; it must return 2 scores"),
        ([1.0, float("nan")], "returned nan for completion 1"),
        ([float("inf"), 1.0], "returned inf for completion 0"),
        (["good", 1.0], "'good' for completion 0"),
        ([0.0, 1e39], "returned 1e+39 for completion 1"),  # infinite in float32
        ([10**400, 0.0], "for completion 0; a number or None is needed"),
        ({0: 0.5, 1: 0.7}, "returned {0: 0.5, 1: 0.7}; it must return 2 scores"),  # whose keys are numbers
        ("12", "returned '12'; it must return 2 scores"),
    ],
)
def test_scores_that_are_wrong(answer: Any, expected: str) -> None:
    with pytest.raises(UserError, match=r"^reward Says ") as caught:
        score(Says(answer), completions(["a", "b"]))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["PatternReward", "NumberReward", "RandomReward", "FunctionReward", "LengthReward", "ModelReward", "ServerReward"],
)
def test_rewards_have_short_names(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    required = {"PatternReward": ["--reward.pattern=a"], "FunctionReward": ["--reward.function=a.b"]}
    required["ServerReward"] = ["--reward.url=http://localhost:8000"]
    more = {"LengthReward": ["--reward.limit=3"], "ModelReward": ["--reward.name_or_path=playground/reward"]}
    parsed = parser.parse_args([f"--reward={name}", *required.get(name, []), *more.get(name, [])])
    assert type(parser.instantiate_classes(parsed).reward).__name__ == name


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_reward_model_scores_as_transformers_does(
    tmp_path: Path, tiny_model_folder: Callable[[str], str], arch: str
) -> None:
    model = load_reward_model(ModelConfig(name_or_path=tiny_model_folder(arch)))
    set_normalization(model, mean=0.5, deviation=2.0)
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    reward = ModelReward(str(tmp_path), tokenizer=tiny_model_folder(arch), batch_size=2)
    reward.check()
    reward.load(torch.device("cpu"))
    rows = completions(["hello dog", "cat", "thank you little dog"], ["say ", "please say ", "to the "])
    found = reward(rows)
    tokenizer, stop = reward.encoder.tokenizer, reward.encoder.stop_tokens[0]
    for prompt, response, value in zip(rows.prompts, rows.responses, found, strict=True):
        ids = reward.encoder.prompt(prompt) + tokenizer(response, add_special_tokens=False)["input_ids"] + [stop]
        expected = (plain(input_ids=torch.tensor([ids])).logits.item() - 0.5) / 2.0
        assert value == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="is not there"):
        ModelReward("./nowhere").check()


def test_a_language_model_is_no_reward_and_a_reward_model_no_policy() -> None:
    ModelReward("playground/reward").check()
    with pytest.raises(UserError, match=r"ModelReward.batch_size is -1; it must be at least 1"):
        ModelReward("playground/reward", batch_size=-1).check()
    with pytest.raises(UserError, match=r"playground/sft is a language model \(LlamaForCausalLM\) .*reward.yaml"):
        ModelReward("playground/sft").check()
    with pytest.raises(UserError, match=r"playground/reward is a classifier \(LlamaForSequenceClassification\)"):
        load_causal_lm(ModelConfig("playground/reward"))

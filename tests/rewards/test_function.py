"""`FunctionReward`: columns, async functions, files and faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import (
    FunctionReward,
    PatternReward,
    WeightedSum,
)

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
    with pytest.raises(UserError, match="has the parameter 'solution', which is no column"):
        FunctionReward("scores_of_mine.wants")(rows)
    FunctionReward("scores_of_mine.everything").check_columns({"answer"}, "train data")
    FunctionReward("scores_of_mine.slow").check_columns({"answer"}, "train data")  # whose scale has a default
    FunctionReward("scores_of_mine.wants", {"solution": 1}).check_columns((), "train data")
    with pytest.raises(
        UserError, match=r"arguments has the key 'scal', which is no parameter of .*; did you mean 'scale'\?"
    ):
        FunctionReward("scores_of_mine.slow", {"scal": 3.0}).check()
    with pytest.raises(
        UserError, match=r"'truncated', which FunctionReward makes .* the train data has a column of that name"
    ):
        FunctionReward(lambda responses, truncated: [0.0] * len(responses)).check_columns({"truncated"}, "train data")
    FunctionReward("scores_of_mine.everything").check_columns({"truncated"}, "train data")  # which names none
    assert FunctionReward(lambda responses, messages: [len(m) for m in messages])(rows) == [2, 2]
    last = completions(["b", "a"])
    both = WeightedSum({"sorts": FunctionReward("scores_of_mine.sorts"), "found": PatternReward("a")})
    assert both(last).scores == [0.0, 1.0], "a function changed what the next reward reads"


def test_a_file_may_define_dataclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("absent.py:plain", "there is no file absent.py"),
        ("notes.txt:plain", "notes.txt is no Python file"),
        ("broken.py:plain", r"broken.py:1 is not valid Python: "),
        ("fails.plain", "fails.plain cannot be imported: ZeroDivisionError"),
    ],
)
@pytest.mark.usefixtures("functions")
def test_functions_that_cannot_be_imported(path: str, expected: str) -> None:
    for name, text in {"notes.txt": "", "broken.py": "def plain(", "fails.py": "1 / 0"}.items():
        Path(name).write_text(text)
    with pytest.raises(UserError, match=expected):
        FunctionReward(path).check()

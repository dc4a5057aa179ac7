"""`JudgeReward` against a small server with recorded answers, right, malformed, refused and missing."""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from completions import completions
from judge_server import JudgeServer, judge_server

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.comparison import PairwiseJudge
from rlhf_lightning.rewards import JudgeReward, score
from rlhf_lightning.types import Completions

KEY = "sk-very-secret-key"


def length_of(text: str, name: str = "response") -> int:
    found = re.search(rf"<{name}>\n(.*)\n</{name}>", text, re.DOTALL)
    assert found is not None
    return len(found.group(1))


def by_length(text: str, body: Any) -> str:
    """Rates a response by its length, and prefers the longer of two."""
    if "<response>" in text:
        return f"Fine.\nRating: [[{length_of(text)}]]"
    a, b = length_of(text, "response A"), length_of(text, "response B")
    return "[[A]]" if a > b else "[[B]]" if b > a else "[[C]]"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with judge_server(by_length) as running:
        yield running


def judge(server: JudgeServer, **options: Any) -> JudgeReward:
    return JudgeReward(server.url, "judge-1", **{"cache": None, "backoff": 0.0, **options})


def groups(rows: Completions, *numbers: int) -> Completions:
    return replace(rows, groups=torch.tensor(numbers))


def test_a_rating_per_response_by_the_rubric_and_the_template(server: JudgeServer) -> None:
    rows = completions(["a ", "bb", "ccc"], ["p", "q", "r"], prompt=["x", [{"role": "user", "content": "y"}], "z"])
    reward = judge(server, rubric="Be kind.", high=9, options={"seed": 3})
    assert score(reward, rows).tolist() == [1, 2, 3]
    assert reward.best == 9
    path, headers, body = next(
        each for each in server.requests if "<prompt>\ny\n" in each[2]["messages"][-1]["content"]
    )
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body["model"] == "judge-1"
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.0, 512, 3)
    assert body["messages"][0]["role"] == "system"
    assert "Be kind." in body["messages"][0]["content"]
    assert "from 1 (worst) to 9 (best)" in body["messages"][0]["content"]


def test_a_template_of_ones_own_with_columns(server: JudgeServer) -> None:
    template = "{{ expected }}: <response>\n{{ response }}\n</response>"
    reward = judge(server, template=template)
    assert score(reward, completions(["a", "bb"], expected=["one", "{{ 7 * 7 }}"])).tolist() == [1, 2]
    assert {text.split(":")[0] for text in server.texts} == {"one", "{{ 7 * 7 }}"}
    assert list(reward.used_columns(["expected", "other"])) == ["expected"]
    with pytest.raises(UserError, match="the variable 'expected', which is no column of the training data"):
        reward.check_columns(["prompt"], "training data")


def test_pairs_ask_both_orders_within_a_group_alone(server: JudgeServer) -> None:
    rows = groups(completions(["a", "bbb", "cc", "dd", "eeee"]), 0, 0, 0, 1, 1)
    reward = judge(server, mode="pairs")
    assert score(reward, rows).tolist() == [0, 1, 0.5, 0, 1]
    assert len(server.requests) == 2 * (3 + 1)
    asked = {tuple(re.findall(r"<response [AB]>\n(.*)\n</response [AB]>", text)) for text in server.texts}
    assert {(b, a) for a, b in asked} == asked
    assert reward.best is None


def test_a_preference_for_a_place_becomes_a_tie(server: JudgeServer) -> None:
    server.answer = lambda text, body: "[[A]]"
    assert score(judge(server, mode="pairs"), groups(completions(["a", "bbb"]), 0, 0)).tolist() == [0.5, 0.5]


def test_equal_responses_tie_without_a_request(server: JudgeServer) -> None:
    assert score(judge(server, mode="pairs"), groups(completions(["a", "a"]), 0, 0)).tolist() == [0.5, 0.5]
    assert server.requests == []


def test_comparisons_limit_the_pairs(server: JudgeServer) -> None:
    rows = groups(completions(["a", "bb", "ccc", "dddd", "eeeee"]), *[0] * 5)
    score(judge(server, mode="pairs", comparisons=1), rows)
    assert len(server.requests) == 2 * 5


def test_a_single_response_has_no_pair_and_no_score(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    rows = groups(completions(["a", "bb", "ccc"]), 0, 1, 1)
    scores = score(judge(server, mode="pairs"), rows)
    assert scores.isnan().tolist() == [True, False, False]
    assert "a prompt has one response, which has no score; set mode to rating" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        "no verdict here",
        "Rating: [[99]]",
        "",
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "refusal": "I will not judge this."},
        {"role": "assistant", "content": "Rating: [[5]]", "refusal": "I will not judge this."},
        (400, {"error": {"code": "context_length_exceeded", "message": "too long"}}),
        (400, {"error": {"code": "content_filter", "message": "no"}}),
    ],
)
def test_what_cannot_be_judged_is_none_and_never_zero(server: JudgeServer, answer: Any) -> None:
    server.answer = lambda text, body: (
        answer if "<response>\nb\n" in text or len(body["messages"]) > 2 else "Rating: [[3]]"
    )
    rows = completions(["a", "b", "c"])
    assert judge(server)(rows) == [3, None, 3]


def test_a_judge_without_a_verdict_is_asked_again_for_the_verdict_alone(server: JudgeServer) -> None:
    server.answer = lambda text, body: "[[4]]" if len(body["messages"]) == 4 else "Hard to say."
    assert judge(server)(completions(["a"])) == [4]
    assert [message["role"] for message in server.requests[1][2]["messages"]] == ["system", "user", "assistant", "user"]
    server.requests.clear()
    assert judge(server, ask_again=0)(completions(["a"])) == [None]
    assert len(server.requests) == 1


def test_half_a_comparison_is_none(server: JudgeServer) -> None:
    server.answer = lambda text, body: "[[A]]" if "<response A>\na\n" in text else "I cannot say."
    assert judge(server, mode="pairs")(groups(completions(["a", "bb"]), 0, 0)) == [None, None]


@pytest.mark.parametrize("mode", ["rating", "pairs"])
def test_it_is_a_pairwise_judge_of_evaluations(server: JudgeServer, mode: Any) -> None:
    reward = judge(server, mode=mode)
    assert isinstance(reward, PairwiseJudge)
    rows = [{"prompt": "p"}, {"prompt": [{"role": "user", "content": "q"}]}, {"prompt": "r"}]
    assert reward.prefer(rows, ["a", "bb", "cc"], ["aa", "b", "dd"]) == [0, 1, 0.5]


def test_two_thousand_requests_with_64_at_a_time(server: JudgeServer) -> None:
    together = threading.Barrier(64)
    answered: list[None] = []

    def answer(text: str, body: Any) -> str:
        answered.append(None)
        if len(answered) <= 64:  # the first of each thread wait for each other
            together.wait(60)
        return f"[[{int(re.findall('x(.*)x', text)[0]) % 10 + 1}]]"

    server.answer = answer
    rows = completions([f"x{number}x" for number in range(2000)])
    reward = judge(server, concurrency=64)
    assert reward(rows) == [number % 10 + 1 for number in range(2000)]
    assert len(server.requests) == 2000
    assert server.most == 64
    assert (reward.chat.usage.prompt_tokens, reward.chat.usage.completion_tokens) == (200_000, 20_000)


def test_answers_that_arrive_together_are_all_in_the_file(server: JudgeServer, tmp_path: Path) -> None:
    path, rows = (
        str(tmp_path / "cache.db"),
        completions(["x" * (number % 9 + 1) for number in range(300)], [*map(str, range(300))]),
    )
    scores = judge(server, concurrency=32, cache=path)(rows)
    assert len(server.requests) == 300
    assert judge(server, cache=path)(rows) == scores
    assert len(server.requests) == 300


def test_equal_content_is_asked_once_and_kept_on_disk(server: JudgeServer, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "cache.db"
    rows = completions(["a", "bb", "a"], ["p", "p", "p"])
    assert judge(server, cache=str(path))(rows) == [1, 2, 1]
    assert len(server.requests) == 2
    again = judge(server, cache=str(path))
    assert again(rows) == [1, 2, 1]
    assert len(server.requests) == 2
    assert again.chat.usage.cached == 3
    assert judge(server, cache=str(path), rubric="Another.")(rows) == [1, 2, 1]
    assert len(server.requests) == 4


def test_what_was_paid_before_a_failure_is_kept(server: JudgeServer, tmp_path: Path) -> None:
    path = str(tmp_path / "cache.db")
    server.answer = lambda text, body: (401, "no") if "<response>\nb\n" in text else "[[3]]"
    with pytest.raises(UserError, match="HTTP 401"):
        judge(server, cache=path, concurrency=1)(completions(["a", "b", "c"]))
    assert len(server.requests) == 2  # nothing is asked after the failure
    server.answer = lambda text, body: "[[5]]"
    assert judge(server, cache=path)(completions(["a", "b", "c"])) == [3, 5, 5]


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    path.write_text("this is a text and no database " * 100)
    with pytest.raises(
        UserError, match=r"cache\.db cannot be opened: file is not a database; set cache to another file"
    ):
        JudgeReward("http://localhost/v1", "m", cache=str(path)).check()


def test_processes_that_share_a_cache(server: JudgeServer, tmp_path: Path) -> None:
    path, failures = str(tmp_path / "cache.db"), []

    def work(reward: JudgeReward, number: int) -> None:
        try:
            reward(completions([f"{'x' * (k % 9 + 1)}" for k in range(20)], [f"{number % 2}"] * 20))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(judge(server, cache=path), number)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_failures_are_retried_and_lines_about_them_are_few(
    server: JudgeServer, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[str] = set()

    def fails_once(text: str, body: Any) -> Any:
        first = text not in seen
        seen.add(text)
        return (status, {"error": {"message": "slow down"}}) if first else by_length(text, body)

    server.answer = fails_once
    assert judge(server)(completions(["a", "bb", "ccc"])) == [1, 2, 3]
    lines = [line for line in capsys.readouterr().out.splitlines() if "attempt" in line]
    assert len(lines) == 1
    assert f"failed (ConnectionError: HTTP {status}" in lines[0]


def test_a_quota_that_is_used_up_stops_at_once(server: JudgeServer) -> None:
    body = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    server.answer = lambda text, _: (429, body)
    with pytest.raises(UserError, match=r"answered HTTP 429 .*insufficient_quota") as caught:
        judge(server, concurrency=1)(completions(["a", "bb", "ccc"]))
    assert len(server.requests) == 1
    assert "\n" not in str(caught.value)


def test_a_server_that_is_down_is_an_error_and_no_score() -> None:
    reward = JudgeReward("http://127.0.0.1:9/v1", "m", cache=None, retries=1, backoff=0.0)
    with pytest.raises(UserError, match=r"2 attempts in .* failed"):
        reward(completions(["a"]))


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"choices": []}', '{"choices": [{"message": {"content": [1]}}]}'])
def test_an_answer_of_another_form_is_one_line(server: JudgeServer, answer: str) -> None:
    server.answer = lambda text, body: (200, answer)
    with pytest.raises(UserError, match="is no chat completion; set url to an OpenAI-compatible API"):
        judge(server)(completions(["a"]))


def test_the_key_is_read_from_the_environment_and_shown_nowhere(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    path = tmp_path / "cache.db"
    reward = judge(server, api_key="JUDGE_KEY", cache=str(path))
    reward.check()
    reward(completions(["a"]))
    assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    server.answer = lambda text, body: (401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(UserError, match=r"Incorrect API key provided: \*\*\*") as caught:
        reward(completions(["bb"]))
    shown = str(caught.value) + repr(vars(reward)) + repr(vars(reward.chat)) + json.dumps(reward.state_dict())
    assert KEY not in shown + capsys.readouterr().out
    assert KEY.encode() not in path.read_bytes()


def test_a_key_in_the_config_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="api_key is no name of an environment variable") as caught:
        JudgeReward("http://localhost/v1", "m", api_key=KEY).check()
    assert KEY not in str(caught.value)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY, which is not set"):
        JudgeReward("http://localhost/v1", "m", api_key="NO_SUCH_KEY").check()


def test_cost_is_counted_kept_and_limited(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    prices = {"prompt_price": 1000.0, "completion_price": 10_000.0}  # 0.1 + 0.1 per request
    reward = judge(server, **prices)
    reward(completions(["a", "bb"]))
    assert reward.chat.usage.cost == pytest.approx(0.4)
    assert (
        "JudgeReward judge-1: 2 requests and 0 answers of the cache, 200 + 20 tokens, cost 0.4000"
        in capsys.readouterr().out
    )
    resumed = judge(server, **prices, max_cost=0.7, concurrency=1)
    resumed.load_state_dict(reward.state_dict())
    with pytest.raises(UserError, match=r"has spent 0\.8000 of max_cost 0\.7"):
        resumed(completions(["ccc", "dddd", "eeeee"]))
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"low": 5, "high": 5}, "low is 5 and JudgeReward.high is 5; set low below high"),
        ({"comparisons": 0}, "comparisons is 0; set it to 1 or more"),
        ({"ask_again": -1}, "ask_again is -1; set it to 0 or more"),
        ({"concurrency": 0}, "concurrency is 0; set it to 1 or more"),
        ({"template": "{{ response"}, "template is no Jinja template"),
        ({"system": "{rubrik}"}, "system cannot be filled in: 'rubrik'"),
        ({"url": "localhost:8000"}, "url is 'localhost:8000/chat/completions', which is not of the form"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        JudgeReward(**{"url": "http://localhost/v1", "model": "m", "cache": None, **options}).check()
    assert expected in str(caught.value)


def test_a_template_cannot_reach_python(server: JudgeServer) -> None:
    with pytest.raises(UserError, match="template cannot be filled in"):
        judge(server, template="{{ response.__class__.__mro__ }}")(completions(["a"]))


def test_a_copy_judges_alike(server: JudgeServer, tmp_path: Path) -> None:
    reward = judge(server, cache=str(tmp_path / "cache.db"))
    reward(completions(["a"]))
    assert copy.copy(reward)(completions(["a"])) == [1]
    assert len(server.requests) == 1

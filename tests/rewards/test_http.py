"""`ServerReward` against a real server whose answers are right, wrong, late or missing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards import ServerReward, score

ROWS = completions(["a", "bb", "ccc", "dddd", "e"], ["p", "q", "r", "s", "t"], answer=[1, None, 3, 4, 5])


class Handler(BaseHTTPRequestHandler):
    """Runs the next step of the server's script; after the last it answers with the lengths of the responses."""

    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((time.monotonic(), dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else lengths
        step(self, body)

    def respond(self, status: int, text: str, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(text.encode())), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Callable[[Handler, Any], None]] = []
        self.asked: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/score"


def lengths(handler: Handler, body: Any) -> None:
    handler.respond(200, json.dumps({"scores": [len(text) for text in body["responses"]]}))


def goes_away(handler: Handler, body: Any) -> None:
    handler.close_connection = True


def breaks_off(handler: Handler, body: Any) -> None:
    handler.respond(200, '{"scores": [1.0', length=100)
    handler.close_connection = True


def hangs(handler: Handler, body: Any) -> None:
    handler.server.over.wait(20)


def drips(handler: Handler, body: Any) -> None:
    """Each byte comes soon enough for a socket's timeout, the answer never does."""
    handler.respond(200, "{", length=1000)
    while not handler.server.over.wait(0.02):
        handler.wfile.write(b" ")


def says(status: int, text: str, **headers: str) -> Callable[[Handler, Any], None]:
    return lambda handler, body: handler.respond(status, text, **headers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def test_it_sends_texts_and_columns_and_returns_the_scores(server: Server) -> None:
    assert score(ServerReward(server.url), ROWS).tolist() == [1, 2, 3, 4, 1]
    ((_, headers, body),) = server.asked
    assert body == {"prompts": ROWS.prompts, "responses": ROWS.responses, "columns": {"answer": [1, None, 3, 4, 5]}}
    assert headers["Content-Type"] == "application/json"


def test_null_is_no_score_and_a_value_that_json_lacks_is_sent_as_text(server: Server) -> None:
    server.script = [says(200, '{"scores": [null, -1.5]}')]
    columns = {"when": [{1}, None], "rated": [float("nan"), {"by": float("inf")}]}
    assert ServerReward(server.url)(completions(["a", "b"], **columns)) == [None, -1.5]
    assert server.asked[0][2]["columns"] == {"when": ["{1}", None], "rated": ["NaN", {"by": "Infinity"}]}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9, None])
def test_batches_keep_order_and_count(server: Server, size: int | None) -> None:
    assert score(ServerReward(server.url, batch_size=size), ROWS).tolist() == [1, 2, 3, 4, 1]
    sent = [body["responses"] for _, _, body in server.asked]
    assert [text for rows in sent for text in rows] == ROWS.responses
    assert {len(rows) for rows in sent[:-1]} <= {size}
    assert len(sent[-1]) <= (size or 5)
    assert [answer for _, _, body in server.asked for answer in body["columns"]["answer"]] == [1, None, 3, 4, 5]


@pytest.mark.parametrize("failure", [goes_away, breaks_off, says(500, "oops"), says(503, "loading"), says(429, "slow")])
def test_transient_failures_are_retried(server: Server, failure: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [failure, failure]
    assert score(ServerReward(server.url, backoff=0.01), ROWS).tolist() == [1, 2, 3, 4, 1]
    first, second, third = (when for when, _, _ in server.asked)
    assert second - first >= 0.01
    assert third - second >= 0.02
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition("; ")[2] for line in printed] == ["retrying in 0.01 s", "retrying in 0.02 s"]
    assert printed[0].startswith(f"reward ServerReward {server.url}: attempt 1 of 6 failed (")


def test_the_line_of_a_retry_quotes_the_server(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [says(503, "loading\nthe model")]
    score(ServerReward(server.url, backoff=0), ROWS)
    assert (
        "failed (ConnectionError: HTTP 503 Service Unavailable: 'loading the model'); retrying"
        in capsys.readouterr().out
    )


def test_a_server_that_is_down_fails_after_all_attempts() -> None:
    gone = Server()
    gone.server_close()
    with pytest.raises(UserError) as caught:
        score(ServerReward(gone.url, retries=2, backoff=0.01), ROWS)
    line = str(caught.value)
    assert line.startswith(f"reward ServerReward {gone.url}: 3 attempts in ")
    assert "the last with ConnectionRefusedError: " in line
    assert "retries (now 2)" in line


@pytest.mark.parametrize("failure", [hangs, drips])
def test_a_server_that_hangs_fails_by_timeout(server: Server, failure: Any) -> None:
    server.script, started = [failure, failure], time.monotonic()
    with pytest.raises(
        UserError, match=r"2 attempts in [\d.]+ s failed, the last with TimeoutError: no answer within 0.2 s"
    ):
        score(ServerReward(server.url, timeout=0.2, retries=1, backoff=0.01), ROWS)
    assert time.monotonic() - started >= 0.4


def test_only_the_batch_that_failed_is_sent_again(server: Server) -> None:
    server.script = [lengths, goes_away]
    assert score(ServerReward(server.url, batch_size=2, backoff=0), ROWS).tolist() == [1, 2, 3, 4, 1]
    assert [body["responses"][0] for _, _, body in server.asked] == ["a", "ccc", "ccc", "e"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(401, "who are\nyou? " * 99), "answered HTTP 401 Unauthorized: 'who are you? who are"),
        (says(404, "no such page"), "answered HTTP 404 Not Found: 'no such page'; fix the url, headers or server"),
        (
            says(302, "", Location="http://elsewhere/"),
            "answered HTTP 302 Found: '' and redirects to http://elsewhere/;",
        ),
        (says(200, "<html>\nhello"), "answered '<html> hello', which is not JSON"),
        (says(200, "[1, 2]"), "answered '[1, 2]'; it must answer {\"scores\": [5 numbers or nulls]}"),
        (says(200, '{"score": 1}'), 'answered \'{"score": 1}\'; it must answer {"scores"'),
        (says(200, '{"scores": 1}'), 'answered \'{"scores": 1}\'; it must answer {"scores"'),
        (says(200, '{"scores": [1, 2]}'), 'answered 2 scores; it must answer {"scores": [5 numbers'),
        (
            says(200, '{"scores": [1, 2, Infinity, 1, 1]}'),
            "returned inf for completion 2; it must return a finite number",
        ),
        (
            says(200, '{"scores": ["good", 1, 1, 1, 1]}'),
            "returned 'good' for completion 0; it must return a number or None",
        ),
        (says(200, '{"scores": [[1], 1, 1, 1, 1]}'), "returned [1] for completion 0; it must return a number or None"),
    ],
)
def test_a_permanent_failure_is_one_line_without_a_retry(server: Server, answer: Any, expected: str) -> None:
    server.script = [answer]
    with pytest.raises(UserError) as caught:
        score(ServerReward(server.url, backoff=0.01), ROWS)
    assert str(caught.value).startswith("reward ServerReward")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert len(server.asked) == 1


def test_too_many_scores_of_one_batch_do_not_make_up_for_too_few_of_another(server: Server) -> None:
    server.script = [says(200, '{"scores": [1, 2, 3]}'), says(200, '{"scores": [4]}')]
    with pytest.raises(UserError, match="answered 3 scores"):
        score(ServerReward(server.url, batch_size=2), completions(["a", "b", "c", "d"]))


def test_headers_are_expanded_from_the_environment_and_kept_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", "s3cret\n")
    reward = ServerReward(server.url, {"Authorization": "Bearer $REWARD_TOKEN", "X-Price": "$$5"})
    reward.check()
    score(reward, ROWS)
    assert server.asked[0][1]["Authorization"] == "Bearer s3cret"
    assert server.asked[0][1]["X-Price"] == "$5"
    assert "s3cret" not in repr(reward) + repr(vars(reward))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("$REWARD_TOKEN", "headers.Authorization contains $REWARD_TOKEN, which is not set"),
        ("$1", "Authorization has a $ without a name; replace it by $$"),
        ("$TWO_LINES", "Authorization has a line break"),
    ],
)
def test_headers_that_cannot_be_expanded(header: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    monkeypatch.setenv("TWO_LINES", "s3cret\ns3cret")
    with pytest.raises(UserError) as caught:
        ServerReward("http://localhost", {"Authorization": header}).check()
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8000/score", "is not of the form"),
        ("file:///etc/hosts", "is not of the form"),
        ("http://", "is not of the form"),
        ("http://localhost:port", "cannot be read: Port could not be cast"),
        ("http://local host", "must be percent-encoded"),
        ("http://me:s3cret@localhost", "has a user name, which belongs into headers"),
    ],
)
def test_a_wrong_url_is_refused_before_any_request(url: str, expected: str) -> None:
    with pytest.raises(UserError, match="set it to a URL such as http://localhost:8000/score") as caught:
        ServerReward(url).check()
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_check_needs_no_server_and_refuses_empty_batches() -> None:
    ServerReward("https://localhost:1/score?model=a", timeout=None).check()
    with pytest.raises(UserError, match="batch_size is 0; set it to 1 or more"):
        ServerReward("http://localhost", batch_size=0).check()


def test_an_answer_without_end_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_lightning.rewards.endpoint.MAX_ANSWER", 1000)
    server.script = [says(200, "[" * 200_000)]
    with pytest.raises(UserError, match="answered more than 1000 bytes; it must answer scores alone"):
        score(ServerReward(server.url, retries=3, backoff=0.01), ROWS)
    assert len(server.asked) == 1


def test_an_abandoned_attempt_stops_reading(server: Server) -> None:
    ended = threading.Event()

    def drips_until_closed(handler: Handler, body: Any) -> None:
        handler.respond(200, "{", length=10**6)
        try:
            while not server.over.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:
            ended.set()

    server.script = [drips_until_closed]
    with pytest.raises(UserError, match="TimeoutError"):
        score(ServerReward(server.url, timeout=0.2, retries=0), ROWS)
    assert ended.wait(10)

"""Annotators over HTTP on a real server: nothing lost, doubled or over-assigned, also while the server is killed."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")
import feedback_load
from feedback_load import Server, check, fill, load

from rlhf_lightning.feedback.people import INVITATION
from rlhf_lightning.feedback.store import Store


def test_every_confirmed_judgement_is_there_once_after_kills(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    invitations = fill(path, items=60, wanted=3, annotators=8)
    with Server(path) as server:
        tally = load(server, invitations, seconds=4.0, kills=2, pace=0.1)
    found = check(path, tally, wanted=3)
    assert found["confirmed"] > 10  # how many depends on the machine
    assert tally.outages > 0
    assert tally.faults == []
    assert {name: found[name] for name in ("lost", "doubled", "made up", "over-assigned")} == dict.fromkeys(
        ("lost", "doubled", "made up", "over-assigned"), 0
    )


def test_the_check_finds_what_must_not_be(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    fill(path, items=2, wanted=1, annotators=1)
    with Store(path) as store:
        annotator = store.people()[0].id
        for _ in range(2):
            store.save(annotator, store.next(annotator).id, {"choice": 0, "comment": "twice"})
    tally = feedback_load.Tally(confirmed=["gone"], sent={"gone"})
    found = check(path, tally, wanted=0)
    assert (found["lost"], found["doubled"], found["made up"], found["over-assigned"]) == (1, 1, 1, 2)


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feedback.db"
    [token] = fill(path, items=3, wanted=1, annotators=1)
    size = path.stat().st_size + 2**15
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    monkeypatch.setattr(feedback_load, "SERVE", limited + feedback_load.SERVE)
    with Server(path) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", INVITATION + token)
        reply = connection.getresponse()
        cookie = str(reply.headers["set-cookie"]).split(";")[0]
        reply.read()
        browser = feedback_load.Browser(server.port, "", "a0", 0.0, feedback_load.Tally(), 1.0)
        connection.request("GET", "/", headers={"Cookie": cookie})
        page = connection.getresponse().read().decode()
        form = browser._form(page, "x" * 9_000)
        assert form is not None
        statuses = set()
        for _ in range(30):
            headers = {
                "Cookie": cookie,
                "Accept": "application/json",
                "Content-Type": "application/x-www-form-urlencoded",
            }
            connection.request("POST", "/undo", feedback_load.urlencode(form), headers)
            connection.getresponse().read()
            connection.request("POST", "/save", feedback_load.urlencode(form), headers)
            reply = connection.getresponse()
            said = json.loads(reply.read())
            statuses.add(reply.status)
            if reply.status == 503:
                break
            connection.request("GET", "/", headers={"Cookie": cookie})
            form = browser._form(connection.getresponse().read().decode(), "x" * 9_000) or form
        assert statuses == {200, 503}
        assert "nothing was saved" in said["message"]


def test_a_second_server_of_a_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    fill(path, items=1, wanted=1, annotators=1)
    with Server(path):
        second = subprocess.run(
            [sys.executable, "-c", feedback_load.SERVE, str(path), "0", ""], capture_output=True, text=True, timeout=60
        )
    assert second.returncode == 1
    assert "is served already" in second.stderr

"""What a stranger, another annotator, or a broken client sends gets a defined answer, and nothing of it is saved."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
import feedback_load
from feedback_load import Server
from starlette.testclient import TestClient

from rlhf_lightning.feedback.items import Media, NewItem, NewResponse
from rlhf_lightning.feedback.limits import BodyLimit
from rlhf_lightning.feedback.people import INVITATION
from rlhf_lightning.feedback.server import create_app
from rlhf_lightning.feedback.sessions import COOKIE
from rlhf_lightning.feedback.store import Store

TRICKS = [
    "'; DROP TABLE judgements; --",
    '" OR 1=1 --',
    "1 UNION SELECT token_hash FROM annotators",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "\0",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "-1",
    "1e9",
    "9" * 40,
    "٣",
    "\ud800",
    "",
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "feedback.db", create=True) as store:
        store.update_settings(gold_share=0.0)
        responses = (NewResponse("one", "secret-model-a"), NewResponse("two", "secret-model-b"))
        store.add(NewItem("pair", f"prompt {number}", responses, wanted=2) for number in range(5))
        yield store


def browser(store: Store, name: str, *roles: str, base: str = "http://testserver") -> TestClient:
    """A client with a session of its own."""
    client = TestClient(create_app(store), base_url=base, follow_redirects=False, raise_server_exceptions=False)
    reply = client.post(INVITATION + store.invite(name, roles or ("annotator",)))
    assert reply.status_code == 303
    return client


def form_of(client: TestClient) -> dict[str, str]:
    page = client.get("/").text
    return {name: re.search(rf'name="{name}" value="(\w+)"', page)[1] for name in ("lease", "token")} | {"choice": "1"}


def judgements(store: Store) -> int:
    with store.database.read() as connection:
        return int(connection.execute("SELECT count(*) FROM judgements").fetchone()[0])


def test_a_judgement_is_saved_once_by_its_annotator(store: Store) -> None:
    client = browser(store, "Ada")
    form = form_of(client)
    assert client.post("/save", data=form).headers["location"] == "/"
    assert judgements(store) == 1
    assert client.post("/save", data=form).headers["location"] == "/?note=repeated"
    assert judgements(store) == 1


def test_guidelines_that_change_while_a_page_is_open(store: Store) -> None:
    client = browser(store, "Ada")
    store.set_guidelines("first")
    form = form_of(client)
    version = re.search(r'name="guidelines" value="(\d+)"', client.get("/").text)[1]
    store.set_guidelines("second")
    assert client.post("/save", data=form | {"guidelines": version}).headers["location"] == "/"
    with store.database.read() as connection:
        assert connection.execute("SELECT guidelines FROM judgements").fetchone()[0] == int(version) == 1


def test_a_second_answer_to_the_same_form_does_not_count(store: Store) -> None:
    client = browser(store, "Ada")
    form = form_of(client)  # two tabs show one form
    client.post("/save", data=form)
    reply = client.post("/save", data=form | {"choice": "tie"})
    assert reply.status_code == 409
    assert "Reply 1 is better" in reply.text
    assert judgements(store) == 1


def test_another_annotators_item_is_refused(store: Store) -> None:
    ada, eve = browser(store, "Ada"), browser(store, "Eve")
    lease = form_of(ada)["lease"]
    assert eve.post("/save", data=form_of(eve) | {"lease": lease}).status_code == 404
    assert eve.get(f"/media/{lease}/1").status_code == 404
    ada.post("/save", data=form_of(ada))
    assert eve.get("/history/1").status_code == 404
    assert eve.post("/history/1", data=form_of(eve)).status_code == 404
    assert judgements(store) == 1


@pytest.mark.parametrize(
    "path", ["/", "/history", "/history/1", "/disputed", "/disputed/1", "/overview", "/media/1/1", "/guidelines"]
)
def test_pages_need_a_session(store: Store, path: str) -> None:
    browser(store, "Ada")
    client = TestClient(create_app(store))
    assert client.get(path).status_code == 401
    client.cookies.set(COOKIE, "forged")
    reply = client.get(path)
    assert reply.status_code == 401
    assert "prompt" not in reply.text


def test_a_forged_cookie_saves_nothing(store: Store) -> None:
    client = browser(store, "Ada")
    form = form_of(client)
    client.cookies.clear()
    client.cookies.set(COOKIE, "A" * 43)
    assert client.post("/save", data=form).status_code == 401
    assert client.post("/undo", data=form).status_code == 401
    assert judgements(store) == 0


@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
def test_a_form_without_its_token_saves_nothing(store: Store, token: str | None) -> None:
    client = browser(store, "Ada")
    form = form_of(client)
    client.post("/save", data=form)
    form = {name: value for name, value in form_of(client).items() if name != "token"}
    form |= {} if token is None else {"token": token}
    for path in ("/save", "/undo", "/history/1"):
        assert client.post(path, data=form).status_code == 403, path
    assert judgements(store) == 1


def test_the_token_of_another_session_saves_nothing(store: Store) -> None:
    ada, eve = browser(store, "Ada"), browser(store, "Eve")
    assert ada.post("/save", data=form_of(ada) | {"token": form_of(eve)["token"]}).status_code == 403
    assert judgements(store) == 0


def test_another_sites_form_is_refused(store: Store) -> None:
    client = browser(store, "Ada")
    headers = {"sec-fetch-site": "cross-site"}
    assert client.post("/save", data=form_of(client), headers=headers).status_code == 403
    assert client.post(INVITATION + store.invite("Eve"), headers=headers).status_code == 403
    assert judgements(store) == 0


@pytest.mark.parametrize("kind", ["pair", "ranking", "rating", "edit"])
def test_tricks_in_every_field_change_nothing_but_texts(tmp_path: Path, kind: str) -> None:
    with Store(tmp_path / "tricks.db", create=True) as store:
        store.update_settings(strength=True)
        responses = (NewResponse("one", "secret-model-a"), NewResponse("two", "secret-model-b"))
        criteria = ("helpful",) if kind == "rating" else ()
        store.add(NewItem(kind, f"prompt {number}", responses, criteria=criteria) for number in range(20))
        client = browser(store, "Ada")
        good = {
            "choice": "1",
            "strength": "2",
            "rank_1": "1",
            "rank_2": "2",
            "score_1_0": "3",
            "score_2_0": "4",
            "edit_1": "better",
        }
        shaping = {
            "pair": {"choice", "strength"},
            "ranking": {"rank_1", "rank_2"},
            "rating": {"score_1_0", "score_2_0"},
            "edit": set(),
        }
        for trick in TRICKS:
            for name in [*good, "lease", "token", "reason", "seconds", "skip", "comment"]:
                before = judgements(store)
                form = form_of(client) | good | {name: trick}
                status = client.post(
                    "/save", data={key: value.encode("utf-8", "surrogatepass") for key, value in form.items()}
                ).status_code
                assert status in (303, 403, 404, 422), (name, trick)
                if name in {"lease", "token"} | shaping[kind]:
                    assert status != 303, (name, trick)
                    assert judgements(store) == before
                client.post("/undo", data=form_of(client))
        page = client.get("/history").text
        assert "<script>alert" not in page
        assert {entry.item.kind for entry in store.history(1)} <= {kind}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_in_every_address(store: Store, trick: str) -> None:
    from urllib.parse import quote

    client = browser(store, "Ada", "annotator", "adjudicator", "owner")
    sent = quote(trick.encode("utf-8", "surrogatepass"), safe="")
    for path in ("/history/{}", "/disputed/{}", "/media/{}/1", "/media/1/{}", "/trained/{}", "/join/{}", "/static/{}"):
        reply = client.get(path.format(sent))
        assert reply.status_code in (404, 405, 409, 307), path
        assert "root:" not in reply.text
    assert client.get(f"/history?before={sent}").status_code == 200
    assert client.get(f"/?note={sent}").status_code == 200


def test_static_files_end_at_their_folder(store: Store) -> None:
    client = TestClient(create_app(store))
    assert client.get("/static/feedback.css").status_code == 200
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd"):
        assert client.get(path).status_code == 404, path


def test_nothing_generated_is_html_and_no_model_is_named(store: Store) -> None:
    attack = (
        '<script>alert(1)</script><img src=x onerror="alert(2)">[x](javascript:alert(3)) ![i](http://other.host/i.png)'
    )
    with store.database.write() as connection:
        connection.execute("UPDATE items SET state = 'settled'")
    store.add(
        [NewItem("pair", attack, (NewResponse(attack, "secret-model-a"), NewResponse(attack + "!", "secret-model-b")))]
    )
    page = browser(store, "<b>Ada</b>").get("/").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not re.search(r"href=\W*javascript", page)
    assert "secret-model" not in page


def test_every_answer_has_the_policy(store: Store) -> None:
    client = browser(store, "Ada")
    for reply in (
        client.get("/"),
        client.get("/nowhere"),
        client.get("/static/feedback.js"),
        client.post("/save", data={}),
    ):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "no-" in reply.headers["cache-control"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", page)


@pytest.mark.parametrize(("base", "secure"), [("http://testserver", False), ("https://testserver", True)])
def test_the_cookie(store: Store, base: str, secure: bool) -> None:
    client = TestClient(create_app(store), base_url=base, follow_redirects=False)
    cookie = client.post(INVITATION + store.invite("Ada")).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert ("Secure" in cookie) == secure


def test_a_proxy_with_tls_and_a_prefix_bounds_the_cookie(store: Store) -> None:
    path = INVITATION + store.invite("Ada")
    with Server(store.database.path, "/feedback") as server:
        for shown in (path, "/feedback" + path):  # nginx takes the prefix off or leaves it on
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("POST", shown, headers={"X-Forwarded-Proto": "https"})
            reply = connection.getresponse()
            assert reply.status == 303
            assert reply.headers["location"] == "/feedback/"
            assert {"Secure", "HttpOnly", "Path=/feedback"} <= set(str(reply.headers["set-cookie"]).split("; "))


def test_a_fault_of_the_server_tells_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser(store, "Ada")
    monkeypatch.setattr(Store, "history", lambda *_, **__: 1 / 0)
    reply = client.get("/history")
    assert reply.status_code == 500
    assert "division" not in reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_a_late_answer_counts_while_its_place_is_free(tmp_path: Path) -> None:
    now = [1_000_000.0]
    with Store(tmp_path / "late.db", create=True, clock=lambda: now[0]) as store:
        store.update_settings(lease_seconds=60.0, gold_share=0.0)
        store.add(NewItem("pair", f"prompt {number}", (NewResponse("one"), NewResponse("two"))) for number in range(2))
        ada, eve = browser(store, "Ada"), browser(store, "Eve")
        first = form_of(ada)
        now[0] += 61
        assert ada.post("/save", data=first).headers["location"] == "/"
        second = form_of(ada)
        now[0] += 61
        assert eve.post("/save", data=form_of(eve)).headers["location"] == "/"
        reply = ada.post("/save", data=second)
        assert reply.headers["location"] == "/?note=expired"
        assert "went to somebody else" in ada.get(reply.headers["location"]).text
        assert judgements(store) == 2


def test_reading_an_invitation_opens_no_session(store: Store) -> None:
    client = TestClient(create_app(store))
    reply = client.get(INVITATION + store.invite("Ada"))
    assert reply.status_code == 200
    assert "set-cookie" not in reply.headers


def test_a_forgotten_name_and_a_new_invitation_end_sessions(store: Store) -> None:
    ada, eve = browser(store, "Ada"), browser(store, "Eve")
    store.forget("Ada")
    store.invite("Eve")
    assert ada.get("/").status_code == 401
    assert eve.get("/").status_code == 401


def test_roles(store: Store) -> None:
    annotator, owner = browser(store, "Ada"), browser(store, "Olga", "owner")
    assert annotator.get("/overview").status_code == 403
    assert annotator.get("/disputed").status_code == 403
    assert owner.get("/overview").status_code == 200
    assert owner.get("/disputed").status_code == 200
    assert owner.get("/").status_code == 403


def test_an_image_is_found_by_its_place_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "images.db", create=True) as store:
        evil = Media("text/html", b"<script>alert(1)</script>")
        images = (NewResponse(None, "a", Media("image/gif", b"GIF89a")), NewResponse(None, "b", evil))
        store.add([NewItem("pair", "draw", images)])
        client = browser(store, "Ada")
        lease = form_of(client)["lease"]
        found = [client.get(f"/media/{lease}/{place}") for place in (0, 1, 2, 3)]
        assert sorted(reply.status_code for reply in found) == [200, 404, 404, 404]
        assert {reply.headers["content-type"] for reply in found if reply.status_code == 200} == {"image/gif"}


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_mb_is_refused_before_it_is_read(store: Store, announced: bool) -> None:
    client = browser(store, "Ada")
    chunk, sent = b"x" * 2**20, []

    def body() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(len(chunk))
            yield chunk

    headers = {"content-type": "application/x-www-form-urlencoded"} | (
        {"content-length": str(100 * 2**20)} if announced else {}
    )
    reply = client.post("/save", content=body(), headers=headers)
    assert reply.status_code == 413
    assert judgements(store) == 0
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("kind", "status"), [("multipart/form-data; boundary=x", 415), ("application/json", 415), ("", 415)]
)
def test_only_forms_are_read(store: Store, kind: str, status: int) -> None:
    assert browser(store, "Ada").post("/save", content=b"--x--", headers={"content-type": kind}).status_code == status


def test_too_many_fields(store: Store) -> None:
    reply = browser(store, "Ada").post("/save", data={f"field{number}": "1" for number in range(2_000)})
    assert reply.status_code == 400


def _talk(port: int, *sent: bytes) -> tuple[bytes, float]:
    """Send bytes, one each tenth of a second; return the answer and the seconds until the server closed the connection."""
    start, received = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for piece in sent:
            connection.sendall(piece)
            if select.select([connection], [], [], 0.1)[0]:
                break
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
    return received, time.monotonic() - start


def test_bodies_and_headers_that_drip(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = INVITATION + store.invite("Ada")
    shorter = "from rlhf_lightning.feedback import limits; limits.HEADER_SECONDS = limits.BODY_SECONDS = 1.0\n"
    monkeypatch.setattr(feedback_load, "SERVE", shorter + feedback_load.SERVE)
    with Server(store.database.path) as server:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: ".encode()
        answer, seconds = _talk(server.port, head + b"1000\r\n\r\n", *[b"x"] * 50)
        assert answer.startswith(b"HTTP/1.1 408")
        assert 1 <= seconds < 4
        answer, seconds = _talk(server.port, b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 50)
        assert answer == b""
        assert 1 <= seconds < 4
        assert _talk(server.port, head + b"100000000\r\n\r\n")[0].startswith(b"HTTP/1.1 413")
        get = b"GET /static/feedback.css HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert _talk(server.port, get)[0].startswith(b"HTTP/1.1 200")


def test_a_body_of_the_limit_passes_whole() -> None:
    """Every byte that the limit lets through reaches the application, however it was cut."""
    import asyncio

    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["body"])

    pieces = [b"a" * 6, b"b" * 4]
    assert len(b"".join(pieces)) == 10
    messages = [{"type": "http.request", "body": piece, "more_body": piece != pieces[-1]} for piece in pieces]

    async def receive() -> Any:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": []}
    asyncio.run(BodyLimit(app, refuse=None, max_bytes=10)(scope, receive, None))
    assert seen == [b"aaaaaabbbb"]

"""An annotator's afternoon in headless Chromium, by keyboard alone."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import ATTACK, LONG, WIDTHS, pair
from feedback_load import Server

from rlhf_lightning.feedback.items import Media, NewItem, NewResponse
from rlhf_lightning.feedback.store import Store

pytestmark = pytest.mark.browser
Serve, SignIn = Callable[..., Server], Callable[..., Any]
KEYS = {"1": "Reply 1 is better", "2": "Reply 2 is better", "0": "Equally good", "b": "Both bad"}
AXE = os.environ.get("AXE")
GIF = bytes.fromhex("47494638396101000100800000ff0000ffffff2c00000000010001000002024401003b")


def press(page: Any, *keys: str) -> None:
    """Press keys of which the last one leads to another page."""
    for key in keys[:-1]:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press(keys[-1])


def train(page: Any) -> None:
    while page.get_by_text("A training item").count():
        press(page, "1", "Enter")
        assert re.search("Right|Not the known answer", page.locator("h1").inner_text())
        assert "correct" in page.locator(".result").inner_text()
        press(page, "Enter")


def log(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        query = (
            "SELECT action, judgements.answer FROM judgements JOIN items ON items.id = item "
            "WHERE purpose != 'training' ORDER BY judgements.id"
        )
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("size", WIDTHS)
def test_an_afternoon_by_keyboard(
    campaign: dict[str, str],
    store_path: Path,
    serve: Serve,
    sign_in: SignIn,
    size: tuple[int, int],
) -> None:
    server = serve(store_path)
    page = sign_in(server, campaign["ada"], size)
    assert page.get_by_text("A training item").count() == 1
    train(page)
    said, seen = [], ""
    for number in range(20):
        key = "120b"[number % 4]
        seen += page.locator("main").inner_text()
        press(page, key, key if number % 2 else "Enter")
        said.append(KEYS[key])
    assert "model-one" not in seen
    assert len(log(store_path)) == 20

    press(page, "u")
    assert "Undone" in page.locator(".note").inner_text()
    press(page, "ArrowRight", "Enter")
    said[-1] = KEYS["2"]

    page.keyboard.press("1")
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    page.keyboard.type("A much better reply.")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.keyboard.type("2 and b and u are text here")
    press(page, "Control+Enter")
    said.append(KEYS["1"])

    page.goto(server.address + "/history")
    shown = [text for text in page.locator(".history strong").all_inner_texts()]
    assert shown == said[::-1]
    page.get_by_role("link", name=re.compile("Correct")).nth(3).focus()
    press(page, "Enter")
    press(page, "0", "0") if shown[3] != KEYS["0"] else press(page, "b", "b")
    assert "correction is saved" in page.locator(".note").inner_text()
    assert page.locator(".tag").all_inner_texts() == ["corrected"]
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

    owner = sign_in(server, campaign["olga"], size)
    assert owner.locator("h1").inner_text() == "Overview"
    row = owner.get_by_role("row").filter(has_text="Ada").locator("td").all_inner_texts()
    gold = int(row[2].split(" of ")[1]) if "of" in row[2] else 0  # mixed in at random
    assert gold <= 3
    assert int(row[0]) == 21 - gold
    assert owner.evaluate("document.documentElement.scrollWidth") <= size[0]

    actions = [action for action, _ in log(store_path)]
    assert actions == ["judge"] * 20 + ["undo", "judge", "judge", "correct"]
    edited = [answer for _, answer in log(store_path) if answer and "A much better reply." in answer]
    assert len(edited) == 1
    assert "2 and b and u are text here" in edited[0]
    with Store(store_path) as store:
        entries = store.history(store.people()[0].id)
        assert len(entries) == 21
        assert {entry.order for entry in entries} == {(0, 1), (1, 0)}


@pytest.mark.parametrize("size", WIDTHS)
def test_hostile_and_long_replies_are_shown_and_not_run(
    campaign: dict[str, str],
    store_path: Path,
    serve: Serve,
    sign_in: SignIn,
    size: tuple[int, int],
) -> None:
    found = set()
    server = serve(store_path)
    page = sign_in(server, campaign["ada"], size)
    train(page)
    for _ in range(6):
        text = page.locator(".replies").inner_text()
        if "<script>" in text:
            found.add("attack")
            assert all(piece in text for piece in ("<script>window.attacked = 1</script>", "<img src=", "<svg onload"))
            assert page.locator(".replies a").count() == 0
            assert page.locator(".replies img").count() == 0
        if "of the long reply" in text:
            found.add("long")
            assert LONG.strip() in page.locator(".replies").text_content()
            reply = page.locator(".reply", has_text="50,010 characters").locator(".body")
            folded = reply.bounding_box()["height"]
            page.keyboard.press("f")
            assert reply.bounding_box()["height"] > 10 * folded
        assert page.evaluate("window.attacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        press(page, "1", "1")
    page.goto(server.address + "/history")
    assert page.evaluate("window.attacked") is None
    assert found == {"attack", "long"}
    assert ATTACK


KINDS = {
    "ranking": (
        ["3", "1", "=", "2", "Enter"],
        lambda order: {"ranks": [{2: 1, 0: 2, 1: 2}[order.index(i)] for i in range(3)]},
    ),
    "rating": (
        ["7", "1", "Backspace", "2", "3", "4", "5", "6", "Enter"],
        lambda order: {
            "scores": [
                [{"helpful": 7, "honest": 2}, {"helpful": 3, "honest": 4}, {"helpful": 5, "honest": 6}][order.index(i)]
                for i in range(3)
            ]
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_by_keyboard(store_path: Path, serve: Serve, sign_in: SignIn, kind: str) -> None:
    keys, expected = KINDS[kind]
    with Store(store_path, create=True) as store:
        responses = tuple(NewResponse(f"reply of {name}", name) for name in ("a", "b", "c"))
        criteria = ("helpful", "honest") if kind == "rating" else ()
        store.add([NewItem(kind, "A question?", responses, criteria=criteria)])
        token = store.invite("Ada")
    server = serve(store_path)
    page = sign_in(server, token)
    press(page, *keys)
    assert page.locator("h1").inner_text() == "Nothing left for you"
    with Store(store_path) as store:
        [entry] = store.history(1)
    assert entry.answer == expected(entry.order)


def test_edit_and_images(watch: Any, store_path: Path, serve: Serve, sign_in: SignIn) -> None:
    with Store(store_path, create=True) as store:
        pictures = tuple(NewResponse(None, name, Media("image/gif", GIF)) for name in ("model-one", "model-two"))
        store.add(
            [NewItem("edit", "A question?", (NewResponse("a reply", "model-one"),)), NewItem("pair", "Draw", pictures)]
        )
        token = store.invite("Ada")
    server = serve(store_path)
    page = sign_in(server, token)
    watch.expected = ["422"]  # Chromium logs the status of a refused form
    page.keyboard.press("Enter")  # unchanged: refused, and nothing is lost
    page.locator("#message", has_text="Change the reply").wait_for()
    page.keyboard.press("e")
    page.keyboard.press("End")
    page.keyboard.type(", improved")
    press(page, "Control+Enter")
    sizes = page.eval_on_selector_all(".reply img", "images => images.map(image => image.naturalWidth)")
    assert sizes == [1, 1]
    assert "model-one" not in page.content()
    press(page, "2", "2")
    with Store(store_path) as store:
        _, edit = store.history(1)
    assert edit.answer == {"edits": [{"response": 0, "text": "a reply, improved"}]}


def test_strength_minimum_time_skip_and_keys_off(store_path: Path, serve: Serve, sign_in: SignIn) -> None:
    with Store(store_path, create=True) as store:
        store.update_settings(strength=True, minimum_seconds=1.5, gold_share=0.0)
        store.add(pair(number) for number in range(3))
        token = store.invite("Ada")
    server = serve(store_path)
    page = sign_in(server, token)
    for key in ("1", "3", "Enter"):
        page.keyboard.press(key)
    assert "read a little longer" in page.locator("#status").inner_text()
    page.wait_for_timeout(1_600)
    press(page, "Enter")
    page.keyboard.press("?")
    page.keyboard.press("Space")  # the focus is on "Use single keys"
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    assert page.locator("h1").inner_text() == "Which reply is better?"
    page.keyboard.press("?")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    press(page, "s")
    with Store(store_path) as store:
        newest, first = store.history(1)
    assert newest.answer == {"skip": True}
    assert first.answer == {"choice": first.order[0], "strength": 3}


def test_a_server_that_is_away_loses_no_answer(store_path: Path, serve: Serve, sign_in: SignIn, watch: Any) -> None:
    with Store(store_path, create=True) as store:
        store.add(pair(number) for number in range(3))
        token = store.invite("Ada")
    server = serve(store_path)
    page = sign_in(server, token)
    watch.expected = ["net::ERR_CONNECTION_"]
    server.kill()
    page.keyboard.press("c")
    page.keyboard.type("typed while it was away")
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.locator("#message", has_text="does not answer").wait_for()
    server.start()
    press(page, "Enter")
    page.goto(server.address + "/history")
    page.go_back()
    assert "Question 1?" in page.locator(".conversation").inner_text()  # the current item, not the one that was saved
    with Store(store_path) as store:
        [entry] = store.history(1)
    assert entry.answer["comment"] == "typed while it was away"


def test_without_the_script_and_below_a_prefix(
    store_path: Path, serve: Serve, campaign: dict[str, str], chromium: Any, watch: Any
) -> None:
    server = serve(store_path, "/feedback")
    context = chromium.new_context(java_script_enabled=False)
    page = watch.page(context.new_page())
    page.goto(server.address + "/join/" + campaign["ada"])
    page.get_by_role("button", name="Start").click()
    page.locator("label.choice", has_text="Tie").click()
    page.locator("label.chip").first.click()
    page.get_by_role("button", name="Save").click()
    assert "Known answer" in page.locator("main").inner_text()
    page.get_by_role("link", name="Next").click()
    assert page.url == server.address + "/"
    context.close()
    with Store(store_path) as store:
        assert len(store.latest()) == 1


def test_two_annotators_disagree_and_an_adjudicator_decides(store_path: Path, serve: Serve, sign_in: SignIn) -> None:
    with Store(store_path, create=True) as store:
        store.add([pair(1, "good", "bad", wanted=2)])
        tokens = [store.invite("Ada"), store.invite("Bob"), store.invite("Olga", ("owner",))]
    server = serve(store_path)
    for token, key in zip(tokens, "0b", strict=False):
        press(sign_in(server, token), key, "Enter")
    page = sign_in(server, tokens[2])
    assert page.get_by_role("row").filter(has_text="pair").count() == 1
    page.get_by_role("link", name="Disputed").click()
    page.get_by_role("link", name="Decide").click()
    assert {"Equally good", "Both bad"} <= set(page.locator(".said td").all_inner_texts())
    press(page, "0", "0")
    assert "No item is disputed" in page.locator("main").inner_text()
    with closing(sqlite3.connect(store_path)) as connection:
        assert connection.execute("SELECT state FROM items").fetchall() == [("adjudicated",)]


@pytest.mark.skipif(AXE is None, reason="set AXE to axe.min.js of the npm package axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_axe_finds_no_serious_violation(
    campaign: dict[str, str],
    store_path: Path,
    serve: Serve,
    sign_in: SignIn,
    size: tuple[int, int],
    scheme: str,
) -> None:
    with Store(store_path) as store:
        responses = tuple(NewResponse(f"reply {number}", "m") for number in range(3))
        store.update_settings(strength=True)
        disputed, all_kinds = store.invite("Bob"), store.invite("Cy", ("annotator", "adjudicator", "owner"))
    checked = []

    def check(page: Any, name: str) -> None:
        page.evaluate(Path(str(AXE)).read_text())
        result = page.evaluate("axe.run()")
        serious = [v for v in result["violations"] if v["impact"] in ("serious", "critical")]
        assert [(name, v["id"], [n["html"] for n in v["nodes"]]) for v in serious] == []
        checked.append(name)

    server = serve(store_path)
    page = sign_in(server, all_kinds, size, color_scheme=scheme)
    check(page, "training")
    press(page, "1", "2", "Enter")
    check(page, "trained")
    press(page, "Enter")
    press(page, "1", "2", "Enter")
    press(page, "Enter")
    for number in range(6):
        page.keyboard.press("1")
        check(page, f"item {number}")
        press(page, "1", "Enter")
    for key in ("?", "g"):
        page.keyboard.press(key)
        check(page, f"dialog {key}")
        page.keyboard.press("Escape")
    for path in (
        "/history",
        "/history/8",
        "/overview",
        "/disputed",
        "/guidelines",
        f"/join/{disputed}",
        "/nowhere",
    ):
        if path == "/nowhere":
            continue
        page.goto(server.address + path)
        check(page, path)
    for kind in ("ranking", "rating", "edit"):
        other = store_path.with_name(f"{kind}.db")
        with Store(other, create=True) as store:
            store.add([NewItem(kind, "A question?", responses, criteria=("helpful",) if kind == "rating" else ())])
            token = store.invite("Ada")
        check(sign_in(serve(other), token, size, color_scheme=scheme), kind)
    assert len(checked) == 19

"""Chromium over a real server; every page is watched for errors and for requests to other hosts."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from feedback_load import Server

from rlhf_lightning.feedback.items import NewItem, NewResponse
from rlhf_lightning.feedback.people import INVITATION
from rlhf_lightning.feedback.store import Store

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
WIDTHS = [(390, 844), (1280, 800)]
GUIDELINES = "# Which reply is better?\n\n1. **Correct** beats polite.\n2. Prefer the reply that answers the question."

ATTACK = (
    '<script>window.attacked = 1</script> <img src="http://other.host/x.png" onerror="window.attacked = 2"> '
    "[a link](javascript:window.attacked=3) ![an image](http://other.host/y.png) <svg onload=window.attacked=4>"
)
LONG = "A sentence of the long reply. " * 1_667
"""50,010 characters."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install Debian's, or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Watch:
    """What no page may do."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.expected: list[str] = []

    def page(self, page: Any) -> Any:
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2].split(":")[0]))
        page.set_default_timeout(10_000)
        return page

    def check(self) -> None:
        assert [error for error in self.errors if not any(text in error for text in self.expected)] == []
        assert self.hosts <= {"127.0.0.1"}


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.check()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, which end after the browsers."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(Server(*arguments))


@pytest.fixture
def sign_in(chromium: Any, watch: Watch, serve: Callable[..., Server]) -> Iterator[Callable[..., Any]]:
    """Opens an invitation in a browser of its own and presses Start."""
    contexts = []

    def open_page(server: Server, token: str, size: tuple[int, int] = (1280, 800), **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        contexts.append(context)
        page = watch.page(context.new_page())
        page.goto(server.address + INVITATION + token)
        page.keyboard.press("Enter")  # Start has the focus
        page.wait_for_url(lambda url: INVITATION not in url)
        return page

    yield open_page
    for context in contexts:
        context.close()


def pair(number: int, left: str = "", right: str = "", wanted: int = 1, **more: Any) -> NewItem:
    responses = (
        NewResponse(left or f"Reply {number} of one model.", "model-one"),
        NewResponse(right or f"Reply {number} of **another** model.", "model-two"),
    )
    return NewItem("pair", f"Question {number}?", responses, wanted=wanted, **more)


def conversation() -> NewItem:
    turns = [
        {"role": "system", "content": "You are a patient cook."},
        {"role": "user", "content": "How do I boil an egg?"},
        {"role": "assistant", "content": "Put it into boiling water for 7 minutes."},
        {"role": "user", "content": "And with a runny yolk, for dipping toast?"},
    ]
    good = (
        "**Four and a half minutes**, then stop the cooking:\n\n1. Bring the water to a gentle boil.\n2. Lower the egg in with a "
        "spoon.\n3. Wait 4½ minutes.\n4. Rinse it under cold water.\n\nServe it at once; the yolk goes on setting in the shell."
    )
    vague = (
        "You can boil it for less time. Some people like it runny, and others prefer a firm yolk:\n\n| minutes | yolk |\n"
        "|:--|--:|\n| 4 | runny |\n| 7 | firm |\n\nEggs are a good source of protein!"
    )
    return NewItem("pair", turns, (NewResponse(good, "model-one"), NewResponse(vague, "model-two")))


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def campaign(store_path: Path) -> dict[str, str]:
    """A store with training, gold, hostile and ordinary items; gives the invitations."""
    known = {"answer": {"choice": 0}, "explanation": "The first reply is **correct**."}
    with Store(store_path, create=True) as store:
        store.update_settings(title="Helpful replies", gold_share=0.2)
        store.set_guidelines(GUIDELINES)
        training = [pair(900 + number, "4", "5", purpose="training", **known) for number in range(2)]
        gold = [pair(950 + number, "right", "wrong", purpose="gold", **known) for number in range(3)]
        special = [conversation(), pair(1, ATTACK, ATTACK + " again"), pair(2, LONG, "short")]
        store.add([*training, *gold, *special, *(pair(number) for number in range(3, 30))])
        return {"ada": store.invite("Ada"), "olga": store.invite("Olga", ("owner",))}

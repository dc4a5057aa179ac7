"""A person judges two rounds of the loop on its page; what was clicked is what the rounds learn from."""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import WIDTHS
from loop import TINY

from tests.guarded import python_path

pytestmark = pytest.mark.browser
REPOSITORY = Path(__file__).parents[2]
ROUNDS, LABELS = 2, 6
SECONDS = 900.0
"""A step of the tiny loop takes a twentieth on an idle machine."""
Clicked = dict[frozenset[str], tuple[str, str] | None]
"""The texts of a pair, prompt included: (better, worse), or None for a tie."""


def python(*words: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": python_path(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    return {"args": [sys.executable, "-u", "-m", "rlhf_lightning", *words], "env": environment}


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(
            **python("loop", "--config", "loop.yaml", *words), cwd=folder, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the first group of a pattern in what the loop printed."""
    end = time.monotonic() + SECONDS
    while not (found := re.search(pattern, (folder / "log.txt").read_text())):
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < end, (folder / "log.txt").read_text()
        time.sleep(0.1)
    return found[1]


def judge(page: Any, tie: bool, seconds: list[float]) -> Clicked:
    """Choose the longer reply of every pair by keyboard; of the first one say that both are equal, if `tie`."""
    clicked: Clicked = {}
    while page.locator("h1").inner_text() == "Which reply is better?":
        prompt, first, second = (text.strip() for text in page.locator("main .body").all_inner_texts())
        key = "0" if tie and not clicked else "1" if len(first) > len(second) else "2"
        better = None if key == "0" else (first, second) if key == "1" else (second, first)
        clicked[frozenset((prompt, first, second))] = better
        began = time.monotonic()
        page.keyboard.press(key)
        with page.expect_navigation():
            page.keyboard.press("Enter")
        seconds.append(time.monotonic() - began)
    assert page.locator("h1").inner_text() == "Nothing left for you"
    return clicked


def learned(folder: Path) -> Clicked:
    """Return the labels of all rounds so far, as `judge` returns what was clicked."""
    lines = [line for name in ("labels", "held_out") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert all(row["probability"] == 1 and len(row["judgements"]) == 1 for row in rows)
    return {frozenset((r["prompt"], r["chosen"], r["rejected"])): (r["chosen"], r["rejected"]) for r in rows}


def test_a_person_judges_two_rounds_and_the_loop_ends_with_its_policy(
    tmp_path: Path, chromium: Any, watch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in TINY.items():
        (tmp_path / name).write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = ["--annotators", "people", "--port", port, "--rounds", str(ROUNDS), "--labels", str(LABELS)]
    options = ["--judgements_per_item", "1", "--reconcile", "majority", "--held_out", "0.34", "--folder", "loop"]
    shots = os.environ.get("SHOTS")
    page, clicked, seconds = None, Clicked(), list[float]()
    with started(tmp_path, *words, *options) as process:
        for number in range(ROUNDS):
            address = wait_for(rf"round {number}: judge at (\S+)/ ;", tmp_path, process)
            if page is None:
                command = ["feedback", "invite", "Ada", "--store", "loop/feedback.db", "--url", address]
                link = subprocess.run(**python(*command), cwd=tmp_path, capture_output=True, text=True, check=True)
                page = watch.page(chromium.new_context().new_page())
                page.goto(link.stdout.strip())
                page.keyboard.press("Enter")  # Start has the focus
                page.wait_for_url(address + "/")
            else:  # the session of the first round is still valid
                page.reload()
            for width, height in WIDTHS:
                page.set_viewport_size({"width": width, "height": height})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                if shots:
                    page.screenshot(path=f"{shots}/{number}-{width}.png", full_page=True)
            now = judge(page, tie=number == 1, seconds=seconds)
            assert len(now) == LABELS
            clicked |= now
            wait_for(rf"round {number}: (\d+) labels to learn from", tmp_path, process)
            assert learned(tmp_path / "loop" / f"round-{number:02d}") == {k: v for k, v in clicked.items() if v}
        assert process.wait(SECONDS) == 0, (tmp_path / "log.txt").read_text()
    assert list(clicked.values()).count(None) == 1
    for number in range(ROUNDS):
        for stage in ("reward", "policy"):
            assert (tmp_path / f"loop/round-{number:02d}/{stage}/export/model.safetensors").is_file()
    measured = json.loads((tmp_path / "loop/round-01/measured.json").read_text())
    assert (measured["judgements"], measured["labels"] + measured["held_out"]) == (ROUNDS * LABELS, ROUNDS * LABELS - 1)
    pictures = chromium.new_context().new_page()
    pictures.goto((tmp_path / "loop/loop.html").as_uri())
    assert pictures.locator("svg").count() >= 3
    for width, height in WIDTHS:
        pictures.set_viewport_size({"width": width, "height": height})
        assert pictures.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if shots:
            pictures.screenshot(path=f"{shots}/pictures-{width}.png", full_page=True)
    with capsys.disabled():
        print(
            f"\nfrom the choice to the next page: median {statistics.median(seconds):.3f} s of {len(seconds)} judgements"
        )

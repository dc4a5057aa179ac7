"""The walk of docs/feedback.md: its commands are run as they are written, and a scripted browser judges."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guarded import python_path

pytestmark = pytest.mark.browser
REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "feedback.md"


def commands() -> list[list[str]]:
    """The commands of the walk's code blocks, in order."""
    section = DOCUMENT.read_text().split("## From an empty folder to a reward model")[1].split("\n## ")[0]
    script = "\n".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))
    lexer = shlex.shlex(script, posix=True, punctuation_chars=">\n")
    lexer.whitespace, lexer.whitespace_split, found = " \t", True, [[]]
    for word in lexer:
        if word.strip("\n"):
            found[-1].append(word)
        elif found[-1]:
            found.append([])
    return [words for words in found if words]


class Folder:
    """Runs the document's commands in an empty folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = os.environ | {"PYTHONPATH": python_path(REPOSITORY), "HF_HUB_OFFLINE": "1"}

    def run(self, words: list[str]) -> str:
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if target else words
        done = subprocess.run(
            self.program(words), cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        if target:
            (self.path / target).write_text(done.stdout)
        return done.stdout

    def program(self, words: list[str]) -> list[str]:
        return [sys.executable, *words[1:]] if words[0] == "python" else words

    @contextmanager
    def serve(self, words: list[str]) -> Iterator[str]:
        """Serve until Ctrl-C, on a free port."""
        process = subprocess.Popen(
            [*self.program(words), "--port", "0"],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            yield next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, 130)


def judge(page: Any) -> int:
    """Choose the longer reply of every pair by keyboard; return how many there were."""
    count = 0
    while page.locator("h1").inner_text() == "Which reply is better?":
        first, second = page.locator(".reply .body").all_inner_texts()
        key = "1" if len(first) > len(second) else "2"
        page.keyboard.press(key)
        with page.expect_navigation():
            page.keyboard.press("Enter")
        count += 1
    return count


def test_the_documented_walk_leads_to_a_reward_model(tmp_path: Path, chromium: Any, watch: Any) -> None:
    folder, link, judged = Folder(tmp_path), "", 0
    walk = commands()
    assert len(walk) == 8
    for words in walk:
        if "serve" in words:
            with folder.serve(words) as address:
                page = watch.page(chromium.new_context().new_page())
                page.goto(re.sub(r"http://[\w.:]+", address, link))
                page.get_by_role("button", name="Start").click()
                page.wait_for_url(address + "/")
                judged = judge(page)
                assert page.locator("h1").inner_text() == "Nothing left for you"
                page.context.close()
            continue
        said = folder.run(words)
        if "invite" in words:
            link = next(word for word in said.split() if "/join/" in word)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert judged >= 40  # of fifty prompts; a prompt with equal responses gives no pair
    assert len(rows) == judged
    assert all(len(row["chosen"]) >= len(row["rejected"]) for row in rows)
    assert list((tmp_path / "runs" / "my-reward").rglob("model.safetensors"))

"""`JudgeReward` against `transformers serve` with the playground's model; SERVE_PYTHON names an interpreter with fastapi."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from completions import completions

from rlhf_lightning.models.paths import resolve_path
from rlhf_lightning.rewards import JudgeReward

pytestmark = pytest.mark.slow
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    python = os.environ.get("SERVE_PYTHON")
    if python is None and importlib.util.find_spec("fastapi") is None:
        pytest.skip("transformers serve needs fastapi; set SERVE_PYTHON to an interpreter that has it")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, folder = resolve_path("playground/sft"), tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python or sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port), "--device", "cpu"], stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "serve.log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def test_a_real_endpoint_whose_model_gives_no_verdict(url: str, tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    reward = JudgeReward(
        url, model, cache=None, max_tokens=8, system="how are you", template="{{ response }}", concurrency=2
    )
    scores = reward(completions(["what is a tiger", "what is a lion"]))
    assert scores == [None, None]  # the playground's model knows no numbers
    assert reward.chat.usage.requests == 4
    assert reward.chat.usage.completion_tokens > 0

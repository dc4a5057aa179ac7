"""The examples of the README: a callback, a reward function, an algorithm and a reward server of one's own, each one new file."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leavings import ROLLOUTS, SMALL, column, lines

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def _in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path or ".").resolve() != ROOT])
    monkeypatch.delitem(sys.modules, "callbacks", raising=False)


@pytest.mark.usefixtures("_in_a_folder_of_ones_own")
def test_an_evaluation_a_reward_and_an_algorithm_of_ones_own(run: Callable[..., Path]) -> None:
    folder = run("out", "fit", "--config", "ppo.yaml", "--config", "extended.yaml", *SMALL, *ROLLOUTS)
    samples = [sample for sample in lines(folder / "samples.jsonl") if sample["step"] == 0]
    longest = column(folder, "val/longest_reply")
    assert len(longest) == 3
    assert longest[0] == max(len(sample["response"]) for sample in samples)
    greedy = [row["reward"] for row in lines(folder / "tables" / "greedy.jsonl") if row["step"] == 0]
    assert len(greedy) == 4
    assert column(folder, "val/reward/greedy")[0] == pytest.approx(sum(greedy) / 4)
    for sample in samples:
        expected = float("happy" in sample["response"]) - 0.02 * len(sample["response"].split())
        assert sample["reward"] == pytest.approx(expected, abs=1e-6)
    assert len(column(folder, "loss/policy")) == 2
    generated = (folder / "config.yaml").read_text()
    assert "my_algorithm.MyAlgorithm" in generated
    assert "longest_reply.LongestReply" in generated


@pytest.mark.usefixtures("_in_a_folder_of_ones_own")
def test_an_algorithm_of_ones_own_takes_options(run: Callable[..., Path]) -> None:
    words = ["--model.algorithm", "my_algorithm.MyAlgorithm", "--model.algorithm.epochs", "2"]
    folder = run("out", "fit", "--config", "ppo.yaml", *words, *SMALL, *ROLLOUTS)
    assert column(folder, "step") == [0, 2, 4]


@pytest.fixture
def reward_server(tmp_path: Path) -> Iterator[str]:
    """The address of the example, which may still be starting: a run tries again until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, str(EXAMPLES / "reward_server.py"), str(port)]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def test_a_reward_server_of_ones_own_and_a_token_that_no_file_shows(
    run: Callable[..., Path], reward_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    reward = ["--model.reward", "ServerReward", "--model.reward.url", reward_server, "--model.reward.backoff", "0.5"]
    reward += ["--model.reward.headers", "{Authorization: Bearer $REWARD_TOKEN}", "--model.reward.batch_size", "3"]
    folder = run("out", "fit", "--config", "ppo.yaml", *reward, *SMALL, *ROLLOUTS)
    samples = lines(folder / "samples.jsonl")
    assert samples
    for sample in samples:
        expected = float("happy" in sample["response"]) - 0.02 * len(sample["response"].split())
        assert sample["reward"] == pytest.approx(expected, abs=1e-6)
    assert "Bearer $REWARD_TOKEN" in (folder / "config.yaml").read_text()
    assert not [path for path in folder.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.usefixtures("_in_a_folder_of_ones_own")
def test_the_examples_learn(run: Callable[..., Path]) -> None:
    folder = run("out", "fit", "--config", "ppo.yaml", "--config", "extended.yaml", "--model.iterations", "20")
    before, *_, after = column(folder, "val/reward/mean")
    assert after > before + 0.2

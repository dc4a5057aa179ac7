"""Two processes over gloo, for the whole session."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guarded import python_path

SECONDS = 240
"""A run that takes longer hangs: ranks wait for each other."""


class Pair:
    """Two processes that run the same command line, as if a launcher had started them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranks: list[subprocess.Popen[str]] = []
        self.answers: list[int] = []

    def start(self) -> None:
        """Begin; also after a hang."""
        self.stop()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(2):
            reading, writing = os.pipe()
            ranks = {"LOCAL_RANK": rank, "RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
            own = {name: str(value) for name, value in {**ranks, **rendezvous}.items()}
            own["PYTHONPATH"] = python_path(Path(__file__).parents[2])  # this checkout, whatever is installed
            self.ranks.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("worker.py")), str(writing)],
                    stdin=subprocess.PIPE,
                    stdout=open(self.folder / f"said.{rank}", "a"),  # noqa: SIM115
                    stderr=subprocess.STDOUT,
                    pass_fds=[writing],
                    cwd=self.folder,
                    env={**os.environ, **own, "OMP_NUM_THREADS": "1", "RLHF_LIGHTNING_DEBUG": "1"},
                    text=True,
                )
            )
            os.close(writing)
            self.answers.append(reading)

    def stop(self) -> None:
        """End both."""
        for process in self.ranks:
            process.kill()
            process.wait()
        for reading in self.answers:
            os.close(reading)
        self.ranks, self.answers = [], []

    def run(self, *words: str) -> list[int]:
        """The exit status of each process."""
        if not self.ranks:
            self.start()
        for process in self.ranks:
            assert process.stdin is not None
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        statuses = []
        for reading in self.answers:
            ready, _, _ = select.select([reading], [], [], SECONDS)
            answer = os.read(reading, 100).decode() if ready else ""
            if not answer.strip():
                self.stop()
                raise AssertionError(f"no answer within {SECONDS} s\n{self.said()}")
            statuses.append(int(answer))
        return statuses

    def said(self, rank: int = 0) -> str:
        """The end of what a process printed."""
        return (self.folder / f"said.{rank}").read_text()[-6000:]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The two processes; their folder is `pair.folder`."""
    processes = Pair(tmp_path_factory.mktemp("two_processes"))
    yield processes
    processes.stop()


@pytest.fixture
def run_on_two(pair: Pair) -> Callable[..., Path]:
    """`run_on_two("out", "fit", …)` runs a command on both, which must succeed, and returns its folder."""

    def command(folder: str, *words: str) -> Path:
        statuses = pair.run(
            *words,
            *("--trainer.default_root_dir", folder, "--trainer.enable_progress_bar", "false"),
            *("--trainer.accelerator", "cpu", "--trainer.devices", "2"),
        )
        assert statuses == [0, 0], pair.said(0) + pair.said(1)
        return pair.folder / folder

    return command

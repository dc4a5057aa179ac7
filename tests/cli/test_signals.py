"""SIGINT and SIGTERM end a command with one line and the status of the signal, wherever they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.__main__ import main
from rlhf_lightning.run.signals import NOTED
from tests.guarded import python_path

ENDS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}
KILL = """
import os, runpy, sys

number, module, *words = sys.argv[1:]

class Kill:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Kill())
sys.argv = ["rlhf_lightning", *words]
runpy.run_module("rlhf_lightning", run_name="__main__")
"""
"""A command in which a signal comes when a module is imported."""


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("module", ["rlhf_lightning.cli.main", "rlhf_lightning.cli.lightning", "torch._C", "own"])
def test_a_signal_during_an_import(number: signal.Signals, module: str) -> None:
    said, status = ENDS[number]
    words = [sys.executable, "-c", KILL, str(int(number)), module, "fit", "--config", "own.yaml"]
    environment = {**os.environ, "PYTHONPATH": python_path(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stderr.splitlines() == [said]
    assert done.returncode == status
    assert not list(Path().rglob("metrics.csv"))


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("caught", ["Exception('another')", "SystemExit(0)", ""])
def test_a_signal_that_a_module_catches(
    number: signal.Signals, caught: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = f"raise {caught}" if caught else "pass"
    start = f"import os\ntry: os.kill(os.getpid(), {int(number)})\nexcept BaseException: {raised}\n"
    Path("own.py").write_text(start + Path("own.py").read_text())
    before = [signal.getsignal(each) for each in ENDS]
    said, status = ENDS[number]
    assert main(["fit", "--config", "own.yaml"]) == status
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert [signal.getsignal(each) for each in ENDS] == before
    assert not list(Path().rglob("metrics.csv"))


def test_a_forked_process_ends_as_it_would_have() -> None:
    with NOTED.running():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert NOTED.number is None

"""A small network uses fewer threads, and threads that wait sleep, unless the user has chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.cli.openmp import sleep_when_idle
from rlhf_lightning.run.threads import Threads, suggested_threads

CPU: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
SMALL: Any = torch.nn.Linear(10, 10)


@pytest.mark.parametrize(
    ("parameters", "available", "expected"), [(0, 8, 1), (600_000, 8, 1), (3_500_000, 8, 3), (7_000_000_000, 8, 8)]
)
def test_threads_grow_with_the_network(parameters: int, available: int, expected: int) -> None:
    assert suggested_threads(parameters, available) == expected


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("chosen", "expected"), [(None, 1), ("2", 2)])
def test_a_run_uses_them_and_says_so(
    chosen: str | None,
    expected: int,
    two_threads: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    if chosen is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    threads = Threads()
    threads.on_fit_start(CPU, SMALL)
    assert torch.get_num_threads() == expected
    cores = os.cpu_count()
    assert capsys.readouterr().out == f"threads: {expected} of {cores} for 0.0 M parameters, OMP_WAIT_POLICY=PASSIVE\n"
    threads.teardown(CPU, SMALL, "fit")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"OMP_NUM_THREADS": "4"}, None)],
    ids=str,
)
def test_the_wait_policy_of_the_user_counts(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sleep_when_idle()
    assert os.environ.get("OMP_WAIT_POLICY") == expected


def test_the_command_line_sets_it_before_torch_is_imported() -> None:
    code = """
import os, sys
from rlhf_lightning.cli import reading
from rlhf_lightning.cli.main import main
reading.run = lambda words: print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
main(["fit"])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "PASSIVE False\n"

"""Whole runs through the real command line, each test in a folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_lightning.__main__ import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, out of which nothing stays imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """None are drawn, which takes a quarter of such a run; test_configs has them drawn and looks at them."""
    monkeypatch.setattr("rlhf_lightning.run.curves.draw", lambda rows, path: None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`run("out", "fit", …)` runs a command that must succeed and returns its folder."""

    def command(folder: str, *words: str) -> Path:
        with monkeypatch.context() as patch:
            patch.setenv("RLHF_LIGHTNING_DEBUG", "1")
            assert main([*words, "--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", folder]) == 0
        return Path(folder).absolute()

    return command

from __future__ import annotations

from pathlib import Path

import pytest
from loop_cases import stay_in_process, write_configs


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `loop.yaml` and the configs that it names."""
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path)
    return tmp_path


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run `fit` and the work on models in this process; gives the command lines of the runs."""
    return stay_in_process(monkeypatch)

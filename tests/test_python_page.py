"""The page about Python and notebooks does what it says, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas
import pytest

from rlhf_lightning import Run
from rlhf_lightning.data import InstructionData

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page: dict[str, Any] = {"__name__": "__main__"}
    cells = blocks("python.md", "python")
    for cell in cells:
        exec(compile(cell, "docs/python.md", "exec"), page)
    run = page["run"]
    assert isinstance(run, Run)
    assert run.folder.parent == Path("runs/ppo")
    assert len(cells) == 6
    shown = [eval(line.split("  #")[0], page) for line in cells[1].splitlines()]
    assert isinstance(shown[0], pandas.DataFrame)
    assert list(shown[0].columns) == ["step", "reward/mean", "kl/reference"]
    assert shown[0]["reward/mean"].notna().any()
    assert {"step", "prompt", "response"} <= set(shown[1].columns)
    assert set(shown[2]) == {"before", "after"}
    assert shown[3]._repr_png_() is not None
    assert (shown[4] / "config.json").is_file()
    assert "<img" in shown[5]._repr_html_()


def test_the_options_of_the_page_about_large_data_are_options() -> None:
    import yaml

    found = [yaml.safe_load(block)["data"]["init_args"] for block in blocks("large-data.md", "yaml")]
    assert [set(options) - {"train"} for options in found] == [
        {"mix", "batch_size"},
        {"mix", "streaming", "steps_per_epoch"},
    ]
    for options in found:
        data = InstructionData(**options)
        assert data.mix == options["mix"]

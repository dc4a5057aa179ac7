"""metrics.csv, JSON lines and curves: what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.callbacks.sample_table import SampleTable
from rlhf_lightning.console import print_once
from rlhf_lightning.io import json_line
from rlhf_lightning.run.curves import draw
from rlhf_lightning.run.metrics_csv import MetricsFile
from rlhf_lightning.run.samples import Samples
from rlhf_lightning.run.summary import Summary


def test_a_row_for_each_step_and_columns_that_grow(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"val/a": 1.0, "epoch": 0}, step=0)
    metrics.log_metrics({"a": 2.0}, step=1)
    metrics.log_metrics({"b": float("nan")}, step=1)
    metrics.log_metrics({"a": 3.0}, step=2)
    metrics.log_metrics({"epoch": 1}, step=3)
    assert (tmp_path / "metrics.csv").read_text() == "step,val/a,a,b\n0,1.0,,\n1,,2.0,\n2,,3.0,\n"


def test_a_run_that_goes_on_drops_what_it_repeats(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path)
    for step in range(4):
        first.log_metrics({"a": float(step)}, step=step)
    second = MetricsFile(tmp_path)
    second.drop_after(1)
    second.log_metrics({"a": 20.0}, step=2)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a", "0,0.0", "1,1.0", "2,20.0"]


@pytest.mark.parametrize("keep", [True, False])
def test_only_training_begins_the_file_anew(tmp_path: Path, keep: bool) -> None:
    MetricsFile(tmp_path).log_metrics({"a": 1.0}, step=5)
    later = MetricsFile(tmp_path, keep=keep)
    assert "5,1.0" in (tmp_path / "metrics.csv").read_text()
    later.log_metrics({"val/a": 2.0}, step=6)
    assert ("5,1.0" in (tmp_path / "metrics.csv").read_text()) is keep


def test_no_partial_file_stays(tmp_path: Path) -> None:
    MetricsFile(tmp_path).log_metrics({"a": 1.0}, step=0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_number_that_is_not_known_is_null() -> None:
    line = json_line({"reward": float("nan"), "prompt": "é\n", "tags": ["x"]})
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert json.loads(line) == {"reward": None, "prompt": "é\n", "tags": ["x"]}
    assert "NaN" not in line


def test_samples_are_in_letters_that_people_read_and_a_line_that_was_cut_off_goes(tmp_path: Path) -> None:
    path, half = tmp_path / "samples.jsonl", "\ud83d"
    trainer = SimpleNamespace(
        default_root_dir=tmp_path, global_step=0, is_global_zero=True, state=SimpleNamespace(fn="fit")
    )
    stage = SimpleNamespace(validation_samples=[{"prompt": f"日本\u2028語 {half}", "response": "é"}])
    first: Any = Samples()
    for trainer.global_step in (0, 2):
        first.on_validation_end(trainer, stage)
    assert "日本" in path.read_text(encoding="utf-8")
    path.write_bytes(path.read_bytes() + '{"step": 4, "prompt": "日'.encode()[:-1])
    later: Any = Samples()
    trainer.global_step = 2
    later.on_validation_end(trainer, stage)
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert found == [{"step": step, **stage.validation_samples[0]} for step in (0, 2)]


def test_a_checkpoint_before_the_next_samples_knows_the_last_ones(tmp_path: Path) -> None:
    """A run that was resumed and killed before its next validation is the run that was not."""
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), is_global_zero=True, default_root_dir=tmp_path)
    samples = Samples()
    checkpoint = {"callbacks": {samples.state_key: {"step": 6}}}
    samples.on_load_checkpoint(trainer, SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    assert samples.state_dict() == {"step": 6}


def test_curves_need_something_to_draw(tmp_path: Path) -> None:
    draw([{"step": 0, "other": 1.0}, {"step": 1, "reward/mean": float("nan")}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    draw(
        [{"step": 0, "reward/mean": 1.0}, {"step": 1, "reward/mean": "2.0", "kl/reference": ""}], tmp_path / "some.png"
    )
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")


def test_one_point_is_a_dot_and_more_are_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    row = {"step": 0, "reward/mean": 1.0, "val/reward/mean": 1.0}
    draw([row], tmp_path / "one.png")
    draw([row, {**row, "step": 1}], tmp_path / "two.png")
    markers = [[line.get_marker() for line in figure.axes[0].lines] for figure in drawn]
    assert markers == [["o", "o"], ["None", "o"]]


def test_text_of_models_and_data_sets_cannot_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b[2Jb\x07\x9b31m\nnext [bold]"
    summary, sample = Summary(), {"prompt": text, "response": text}
    summary.first = [sample]
    summary._print({}, [sample])
    SampleTable()._print("samples", [sample])
    print_once(text)
    said = capsys.readouterr().out
    assert said.count("\\x1b[2Jb\\x07\\x9b31m") == 6
    assert said.count("[bold]") == 6
    assert not any(letter in said for letter in "\x1b\x07\x9b")

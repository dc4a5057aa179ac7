"""Runs of a stage of the user's own through the real command line, and what they leave."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule, LightningModule

from rlhf_lightning.__main__ import main
from rlhf_lightning.cli.lightning import CLI
from tests.guarded import python_path

Fit = Callable[..., Path]


def strict(text: str) -> Any:
    """JSON without the words that only Python knows."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_files_and_says_where(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("out")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[-1] == "run: out"
    assert any("batch 4/4" in line and "reward/mean" in line for line in said)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.csv", "samples.jsonl", "curves.png", "summary.json", "checkpoints", "export")
    }
    assert [row["step"] for row in rows(folder)] == ["0", "1", "2", "3", "4"]
    assert rows(folder)[0]["val/reward/mean"] == "0.0"  # before the first step
    assert rows(folder)[0]["val/unknown"] == ""
    assert rows(folder)[1]["val/reward/mean"] == ""
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert float((folder / "export" / "weight").read_text()) == pytest.approx(1 - 0.8**4)


def test_the_summary_has_before_after_and_best(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    summary = strict((fit("out") / "summary.json").read_text())
    assert summary["val/reward/mean"] == {"before": 0.0, "after": pytest.approx(1 - 0.8**4, rel=1e-5), "best": 1.0}
    assert summary["val/unknown"] == {"before": None, "after": None}
    said = capsys.readouterr().out
    assert "0.5904" in said
    for prompt in ("q0 [b]", "q1 [b]", "q2 [b]"):
        assert f"{prompt}\n  before: 0.00\n  after:  0.59" in said
    assert "q3" not in said


def test_a_run_is_measured_at_its_end(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where no validation of `val_check_interval` falls on the last step."""
    for folder, interval in (("once", []), ("twice", ["--trainer.val_check_interval", "2"])):
        summary = strict((fit(folder, "--trainer.max_steps", "3", *interval) / "summary.json").read_text())
        assert summary["val/reward/mean"] == {"before": 0.0, "after": pytest.approx(0.488), "best": 1.0}
        said = capsys.readouterr().out
        assert "after:  0.49" in said
        assert "the last validation was at step" not in said


def test_samples_are_of_every_validation(fit: Fit) -> None:
    folder = fit("out", "--trainer.val_check_interval", "0.5")
    samples = [strict(line) for line in (folder / "samples.jsonl").read_bytes().splitlines()]
    assert [sample["step"] for sample in samples] == [0] * 4 + [2] * 4 + [4] * 4
    assert samples[0] == {"step": 0, "prompt": "q0 [b]", "response": "0.00", "reward": None}


def test_the_config_of_a_run_repeats_it_elsewhere(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit("out", "--model.lr", "0.2")
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"] is None
    assert saved["ckpt_path"] is None
    capsys.readouterr()
    assert main(["fit", "--config", "out/config.yaml"]) == 0
    again = Path(capsys.readouterr().out.splitlines()[0].removeprefix("run: "))
    assert again.parts[:2] == ("runs", "out")
    assert rows(again) == rows(first)


def test_a_run_goes_on_without_a_row_twice(fit: Fit) -> None:
    whole = fit("whole", "--trainer.max_epochs", "2")
    fit("parts")
    parts = fit("parts", "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert [row["step"] for row in rows(parts)] == [row["step"] for row in rows(whole)] == [str(i) for i in range(9)]
    assert rows(parts)[5:] == rows(whole)[5:]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["max_steps=3"], ["batch 1/3", "batch 3/3"]),
        (["max_steps=9"], ["batch 1/4", "batch 4/4"]),
        (["max_steps=1", "accumulate_grad_batches=2"], ["batch 1/2", "batch 2/2"]),
        (["max_steps=6", "max_epochs=3"], ["batch 1/4", "batch 4/4", "batch 1/2", "batch 2/2"]),
        (["limit_train_batches=2"], ["batch 1/2", "batch 2/2"]),
    ],
)
def test_progress_counts_the_batches_that_are_run(
    fit: Fit, capsys: pytest.CaptureFixture[str], words: list[str], expected: list[str]
) -> None:
    fit("out", *(f"--trainer.{word}" for word in words))
    assert re.findall(r"batch \d+/\d+", capsys.readouterr().out) == expected


def test_progress_begins_with_what_was_measured_before_the_first_step(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("out")
    threads, evaluation_mode, before, disk, first = capsys.readouterr().out.splitlines()[1:6]
    assert threads.startswith("threads: 1 of ")
    assert evaluation_mode == "measuring held-out rows before the first step"
    assert re.fullmatch(r"before the first step  val/reward/mean 0\.0000  \d+ s", before)
    assert disk.startswith("checkpoints: about ")
    assert re.fullmatch(r"batch 1/4  (reward/mean \S+  )?\d+ s", first)


def test_a_later_validation_keeps_the_history(fit: Fit) -> None:
    folder = fit("out")
    before, config = rows(folder), (folder / "config.yaml").read_text()
    assert main(["validate", "--config", "own.yaml", "--model.lr", "9", "--trainer.default_root_dir", "out"]) == 0
    assert rows(folder)[: len(before)] == before
    assert (folder / "config.yaml").read_text() == config


@pytest.mark.parametrize(("subcommand", "name"), [("validate", "val/reward/mean"), ("test", "test/reward/mean")])
def test_what_is_measured_is_printed(capsys: pytest.CaptureFixture[str], subcommand: str, name: str) -> None:
    assert main([subcommand, "--config", "own.yaml", "--trainer.default_root_dir", "out"]) == 0
    assert any(name in line and " 0.0 " in line for line in capsys.readouterr().out.splitlines())


def test_a_fault_of_the_set_up_leaves_an_earlier_run_alone(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("out")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = ["fit", "--config", "own.yaml", "--model.fault", "setup", "--trainer.default_root_dir", "out"]
    assert main(words) == 2
    assert "error: the rows do not fit" in capsys.readouterr().err.splitlines()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_predictions_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", "own.yaml", "--trainer.default_root_dir", "out"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "predictions: out/predictions.jsonl" in said
    lines = [strict(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    assert lines == [{"prompt": "q", "response": "r", "reward": None}] * 8


def test_ones_own_loggers_and_callbacks_stand_beside_ours(fit: Fit) -> None:
    Path("callbacks").mkdir()
    Path("callbacks/count.py").write_text(
        "from pathlib import Path\n"
        "from lightning.pytorch import Callback\n"
        "class Count(Callback):\n"
        "    def on_train_end(self, trainer, stage):\n"
        "        Path('counted').write_text(str(trainer.global_step))\n"
    )
    Path("more.yaml").write_text(
        "trainer:\n"
        "  callbacks:\n"
        "  - class_path: callbacks.count.Count\n"
        "  logger:\n"
        "  - class_path: CSVLogger\n"
        "    init_args: {save_dir: theirs}\n"
    )
    folder = fit("out", "--config", "more.yaml")
    assert Path("counted").read_text() == "4"
    assert list(Path("theirs").rglob("metrics.csv"))
    assert len(rows(folder)) == 5


def test_help_is_quick_and_names_every_subcommand() -> None:
    code = "import sys; from rlhf_lightning.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert all(f"\n{name} " in done.stdout for name in ("fit", "validate", "test", "predict", "init"))
    assert done.stderr == ""


def test_as_a_command_of_its_own() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(Path(__file__).parents[2])}
    words = [sys.executable, "-m", "rlhf_lightning", "fit", "--config", "own.yaml", "--trainer.accelerator", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == said[-1]
    assert said[0].startswith("run: runs/own/2")
    assert not any(noise in done.stdout + done.stderr for noise in ("💡", "workers", "LeafSpec", "Traceback"))
    broken = subprocess.run(
        [*words, "--model.fault", "oops"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert broken.returncode == 1
    assert broken.stderr.strip().splitlines()[-1] == "error: KeyError: 'oops' (RLHF_LIGHTNING_DEBUG=1 shows where)"
    assert "Traceback" not in broken.stderr


def test_a_command_line_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))

    class Own(CLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_argument("--half", default=2, type=int)
            parser.link_arguments("half", "data.init_args.rows", compute_fn=lambda half: 2 * half)

    words = ["fit", "--config", "own.yaml", "--half", "3", "--trainer.max_epochs", "1"]
    options: Any = {"auto_configure_optimizers": False, "subclass_mode_model": True, "subclass_mode_data": True}
    own = Own(LightningModule, LightningDataModule, args=words, **options)
    assert own.datamodule.rows == 6
    assert len(rows(Path())) == 4  # in the current folder, as Lightning's


def test_loggers_get_the_config_as_hyper_parameters(fit: Callable[..., Path]) -> None:
    csv = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "theirs", "--model.lr", "0.25"]
    fit("out", *csv)
    (path,) = Path("theirs").rglob("hparams.yaml")
    known = yaml.safe_load(path.read_text())
    assert known["model"] == {"class_path": "own.OwnStage", "init_args": {"fault": "", "lr": 0.25}}
    assert known["data"]["class_path"] == "own.OwnRows"
    assert known["seed_everything"] == 0

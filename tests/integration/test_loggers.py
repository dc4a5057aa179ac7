"""CSV, TensorBoard and W&B show metrics and samples under the same names, with the same numbers, at the same steps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from leavings import ROLLOUTS, SMALL, lines

from rlhf_lightning.evaluation.tables import markdown
from rlhf_lightning.run.results import Run

pytestmark = pytest.mark.slow
Metrics = dict[str, dict[int, float]]
"""Name to the value at each step."""
TABLES = {"val/samples": "samples", "train/rollouts": "rollouts"}
"""Name that a logger shows to the name of the file."""
CONFIG = """
trainer:
  logger:
    - class_path: TensorBoardLogger
      init_args: {save_dir: tensorboard}
    - class_path: WandbLogger
      init_args: {project: playground, offline: true, save_dir: wandb}
  callbacks:
    - class_path: SampleTable
      init_args: {rows: 2, every_n_steps: 1, console: false}
    - class_path: WinRate
      init_args: {score: reward/true}
"""
BLOCK, HEADER = 32768, 7
"""Bytes of a block and of the header of each record, in the log format of LevelDB."""


def wandb_records(path: Path) -> Iterator[Any]:
    """Read the file of an offline run: records of LevelDB's log format, each a message of W&B's protocol."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), HEADER, []
    while place + HEADER <= len(data):
        if (left := BLOCK - place % BLOCK) < HEADER:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + HEADER : place + HEADER + size])
        place += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """Return what W&B has logged: name to value, row by row; a table has the keys `<name>/path` and others."""
    (path,) = folder.rglob("*.wandb")
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def wandb_content(folder: Path) -> tuple[Metrics, dict[str, dict[int, list[dict[str, Any]]]]]:
    """Return metrics, and the rows of each table at each step."""
    metrics: Metrics = {}
    tables: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in wandb_history(folder):
        step = int(row.pop("trainer/global_step"))
        if name := next((key.removesuffix("/_type") for key in row if key.endswith("/_type")), None):
            (path,) = folder.rglob(row[f"{name}/path"])
            content = json.loads(path.read_text())
            tables.setdefault(name, {})[step] = [
                dict(zip(content["columns"], values, strict=True)) for values in content["data"]
            ]
        else:
            for key in row:
                if not key.startswith("_"):
                    metrics.setdefault(key, {})[step] = float(row[key])
    return metrics, tables


def tensorboard_content(folder: Path) -> tuple[Metrics, dict[str, dict[int, str]]]:
    """Return metrics, and the Markdown of each table at each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    metrics = {
        name: {each.step: each.value for each in events.Scalars(name)}
        for name in tags["scalars"]
        if name != "hp_metric"  # Lightning's own, a constant
    }
    texts = {
        name.removesuffix("/text_summary"): {
            each.step: each.tensor_proto.string_val[0].decode() for each in events.Tensors(name)
        }
        for name in tags["tensors"]
    }
    return metrics, texts


def csv_content(folder: Path) -> Metrics:
    """Return metrics of metrics.csv."""
    frame = Run(folder).metrics.set_index("step")
    return {
        str(name): {int(step): float(value) for step, value in column.items() if not math.isnan(value)}
        for name, column in frame.items()
    }


def at_steps(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Sort the rows of a table by their steps."""
    steps = dict.fromkeys(row["step"] for row in rows)
    return {
        step: [{k: v for k, v in row.items() if k != "step"} for row in rows if row["step"] == step] for step in steps
    }


def test_three_loggers_have_the_same_names_numbers_and_samples(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "loggers.yaml").write_text(CONFIG)
    try:
        folder = run("out", "fit", "--config", "ppo.yaml", *SMALL, *ROLLOUTS, "--config", "loggers.yaml")
    finally:
        wandb.finish()
        wandb.teardown()
    expected = csv_content(folder)
    assert {"loss/policy", "reward/mean", "val/reward/true", "val/win_rate", "time/generate"} <= expected.keys()
    files = {name: at_steps(lines(folder / "tables" / f"{file}.jsonl")) for name, file in TABLES.items()}
    metrics, texts = tensorboard_content(tmp_path / "tensorboard")
    assert metrics == {name: pytest.approx(values, rel=1e-5, nan_ok=True) for name, values in expected.items()}
    assert texts == {name: {step: markdown(rows) for step, rows in table.items()} for name, table in files.items()}
    metrics, tables = wandb_content(tmp_path / "wandb")
    assert metrics == {name: pytest.approx(values, rel=1e-5) for name, values in expected.items()}
    assert tables == files

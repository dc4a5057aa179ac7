"""Tables of evaluations: a file of JSON lines in the run's folder, and the loggers that show tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from rlhf_lightning.io import append_json_lines, atomic_write

Row = Mapping[str, Any]


def log_tables(trainer: Trainer, split: str, tables: Mapping[str, Sequence[Row]]) -> None:
    """Append tables to the files of the run, and give them to TensorBoard, W&B and MLflow where the trainer has them.

    Args:
        trainer: has the folder, the step and the loggers.
        split: `train`, `val` or `test`; loggers get the name behind it, as they do for metrics.
        tables: name to rows.
    """
    for name, rows in tables.items():
        write_table(Path(trainer.default_root_dir) / "tables" / f"{name}.jsonl", trainer.global_step, rows)
        for logger in trainer.loggers if rows else []:
            _give(logger, f"{split}/{name}", rows, trainer.global_step)


def write_table(path: Path, step: int, rows: Sequence[Row]) -> None:
    """Append rows with their step; rows of this and of later steps, which a resumed run repeats, are dropped first."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] < step]
    if len(kept) < len(lines):
        atomic_write(path, lambda partial: partial.write_bytes(b"".join(kept)))
    append_json_lines(path, ({"step": step, **row} for row in rows))


def _give(logger: Any, name: str, rows: Sequence[Row], step: int) -> None:
    """Give a table to a logger by the method of its kind; a logger of another kind gets nothing."""
    kind = type(logger).__name__
    if kind == "WandbLogger":
        columns = list(dict.fromkeys(column for row in rows for column in row))
        logger.log_table(name, columns, [[_cell(row.get(column)) for column in columns] for row in rows], step=step)
    elif kind == "TensorBoardLogger":
        logger.experiment.add_text(name, markdown(rows), step)
    elif kind == "MLFlowLogger":
        logger.experiment.log_text(logger.run_id, markdown(rows), f"{name}/{step}.md")


def markdown(rows: Sequence[Row]) -> str:
    r"""Format rows as a table of Markdown.

    >>> print(markdown([{"a": "x|y", "b": 0.5}]))
    | a | b |
    | --- | --- |
    | x\|y | 0.5 |
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_text(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\r", "").replace("\n", "<br>")

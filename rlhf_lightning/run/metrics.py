"""`metrics.csv`: one row a logged step, whatever other loggers there are."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class MetricsFile(Logger):
    """Appends to `<folder>/metrics.csv`; a new column rewrites the file whole, a resumed run first drops what it will repeat.

    With `keep`, what the file holds stays: measuring a model again must not cost the history of its training.
    """

    def __init__(self, folder: Path, keep: bool = False) -> None:
        super().__init__()
        self.folder, self.path = Path(folder), Path(folder) / "metrics.csv"
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = self._read() if keep else []

    name = "metrics"
    version = ""

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.folder)

    root_dir = save_dir = log_dir

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write one row; numbers of the same step share it."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(values)
            self._rewrite()
            return
        self.rows.append({"step": step, **values})
        if set(values) <= set(self.columns) and self.path.exists():
            with open(self.path, "a", newline="") as file:
                self._writer(file).writerow(_shown(self.rows[-1]))
        else:
            self._rewrite()

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Take up the file of the run that this one continues, up to a step."""
        if self.path.is_file():
            self.rows = [row for row in self._read() if row["step"] <= step]
            self._rewrite()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="") as file:
            return [{**row, "step": int(row["step"])} for row in csv.DictReader(file)]

    def _rewrite(self) -> None:
        names = dict.fromkeys(name for row in self.rows for name in row)
        self.columns = [name for name in names if name != "step"]
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with open(partial, "w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(_shown(row) for row in self.rows)
        os.replace(partial, self.path)

    def _writer(self, file: Any) -> Any:
        return csv.DictWriter(file, ["step", *self.columns])


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value if not isinstance(value, float) or value == value else "" for name, value in row.items()}

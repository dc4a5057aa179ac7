"""Check what an evaluation returned."""

from __future__ import annotations

import math
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation.base import Evaluation, EvaluationReport


@dataclass(frozen=True)
class Outcome:
    """Hold the checked result of one evaluation, which rank zero sends to all ranks."""

    metrics: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    """The line about what failed; empty where nothing did."""
    stop: str | None = None
    export: str | None = None


class InvalidReportError(Exception):
    """Say what is wrong with a returned value."""


def checked_report(value: object, taken: Collection[str]) -> EvaluationReport:
    """Return the value of `evaluate` as a report of plain numbers.

    Args:
        value: metrics by name, or a report.
        taken: names of metrics that the stage or another evaluation measured.

    Raises:
        InvalidReportError: it is neither, or a metric is no finite number under a name of its own.
    """
    report = value if isinstance(value, EvaluationReport) else EvaluationReport(_mapping(value))
    metrics = {_name(name, taken): _number(name, number) for name, number in _mapping(report.metrics).items()}
    tables = {name: _rows(name, rows) for name, rows in _mapping(report.tables).items()}
    if not (report.stop is None or isinstance(report.stop, str)):
        raise InvalidReportError(f"stop is {report.stop!r:.60}; it must be the reason as text, or None")
    if report.export is not None and (not isinstance(report.export, str) or Path(report.export).name != report.export):
        raise InvalidReportError(f"export is {report.export!r:.60}; it must be the name of a folder, or None")
    return EvaluationReport(metrics, tables, report.stop, report.export)


def _mapping(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidReportError(f"it returned {value!r:.60}; it must return a dict of metrics or an EvaluationReport")
    return value


def _name(name: object, taken: Collection[str]) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidReportError(f"a metric is called {name!r:.60}; a name must be text")
    if name in taken:
        raise InvalidReportError(f"metric {name!r} exists already; return it under another name")
    return name


def _number(name: object, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, str | bytes) else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidReportError(f"metric {name!r} is {value!r:.60}; it must be one finite number")
    return number


def _rows(name: object, rows: object) -> list[dict[str, Any]]:
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidReportError(f"a table is called {name!r:.60}; a name must be letters, digits and underscores")
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise InvalidReportError(f"table {name!r} is {rows!r:.60}; it must be a list of dicts")
    return [dict(row) for row in rows]


def failure_line(evaluation: Evaluation, step: int, error: BaseException) -> str:
    """Describe a failed evaluation in one line, with the file and line of the user's code where there is one."""
    reason = str(error) if isinstance(error, InvalidReportError) else f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "rlhf_lightning/evaluation/" not in each.filename.replace("\\", "/")]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"evaluation {type(evaluation).__name__} failed at step {step}: {' '.join(reason.split())[:300]}{where}"

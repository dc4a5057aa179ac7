"""What an evaluation may return, and the line about what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.evaluation.base import Ask, Evaluation, EvaluationReport, ValidationResults
from rlhf_lightning.evaluation.reports import InvalidReportError, checked_report, failure_line
from rlhf_lightning.evaluation.tables import write_table
from tests.leavings import lines


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "it returned None"),
        ([1.0], r"it returned \[1.0\]"),
        ({"x": "high"}, "'x' is 'high'"),
        ({"x": "1"}, "'x' is '1'"),
        ({"x": float("nan")}, "'x' is nan"),
        ({"x": float("inf")}, "'x' is inf"),
        ({"x": None}, "'x' is None"),
        ({"x": torch.ones(2)}, "'x' is tensor"),
        ({"x": 10**400}, "'x' is 1000"),
        ({1: 1.0}, "called 1"),
        ({"": 1.0}, "called ''"),
        ({"reward/mean": 1.0}, "'reward/mean' exists already"),
        (EvaluationReport(tables={"t": "text"}), "table 't' is 'text'"),  # type: ignore[dict-item]
        (EvaluationReport(tables={"../t": []}), "table is called '../t'"),
        (EvaluationReport(stop=True), "stop is True"),  # type: ignore[arg-type]
    ],
)
def test_another_result_is_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidReportError, match=message):
        checked_report(value, {"reward/mean"})


def test_numbers_of_any_kind_become_floats() -> None:
    report = checked_report({"a": torch.tensor([0.5]), "b": True, "c": 3, "d": torch.tensor(2.0)}, ())
    assert report.metrics == {"a": 0.5, "b": 1.0, "c": 3.0, "d": 2.0}
    assert all(type(value) is float for value in report.metrics.values())


class Faulty(Evaluation):
    def evaluate(self, results: ValidationResults, ask: Ask) -> Mapping[str, float]:
        raise KeyError("two\nlines")


def test_a_failure_is_one_line_that_names_the_place() -> None:
    unread: Any = None
    try:
        Faulty().evaluate(unread, unread)
    except KeyError as error:
        line = failure_line(Faulty(), 7, error)
    assert line.startswith("evaluation Faulty failed at step 7: KeyError: 'two")
    assert "\n" not in line
    assert "test_reports.py:" in line


def test_a_repeated_step_replaces_its_rows_and_all_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "tables" / "t.jsonl"
    for step in (0, 4, 8, 4):
        write_table(path, step, [{"x": step * 10}])
    assert lines(path) == [{"step": 0, "x": 0}, {"step": 4, "x": 40}]

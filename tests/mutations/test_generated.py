"""Generated faults: each is another program, and annotations, messages and docstrings have none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from generated import GROUPS, ROOT, all_faults, faults_of, wilson

CODE = '''"""Take 1 and return 2."""
def clipped(x: int, low: float = 0.5) -> list[1]:
    """Return more than 3."""
    if not x and low < 1:
        raise ValueError(f"{x + 4} is wrong" + "5")
    return min(x, -low) if "é" in x else x[::-1]
'''


def test_each_fault_changes_the_place_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    found = {(fault.line, fault.before, fault.after) for fault in faults_of(path, "code.py")}
    assert found == {
        (2, "0.5", "1.0"),
        (4, "not x and low < 1", "(not x or low < 1)"),
        (4, "not x", "x"),
        (4, "low < 1", "(low <= 1)"),
        (4, "1", "2"),
        (6, 'min(x, -low) if "é" in x else x[::-1]', "(x[::-1] if 'é' in x else min(x, -low))"),
        (6, "min", "max"),
        (6, "-low", "low"),
        (6, '"é" in x', "('é' not in x)"),
        (6, "1", "2"),
    }


@pytest.mark.parametrize("name", GROUPS)
def test_every_fault_of_the_package_is_a_program_of_its_own(name: str) -> None:
    faults = all_faults(GROUPS[name])
    assert len(faults) > 100
    for fault in faults[::7]:
        original, (begin, end) = (ROOT / fault.file).read_bytes(), fault.span
        text = original[:begin] + fault.after.encode() + original[end:]
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(original)), fault
    assert all((ROOT / test).exists() for test in GROUPS[name].tests)


def test_the_interval_of_a_score() -> None:
    assert wilson(380, 400) == pytest.approx((0.9241, 0.9674), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)

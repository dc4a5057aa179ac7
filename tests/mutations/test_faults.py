"""The list of faults does not rot: each still has its place, and each names tests that exist. `run.py` puts them in."""

from __future__ import annotations

import ast
from collections import Counter

import pytest
from mutations.run import ROOT, Fault, read_faults

FAULTS = read_faults()


def test_there_are_many_in_every_part_where_numbers_are_made() -> None:
    parts = Counter(fault.file.split("/")[0] for fault in FAULTS)
    assert len(FAULTS) >= 40
    assert min(parts[name] for name in ("functional", "algorithms", "rollouts", "models")) >= 10
    assert len({str(fault) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_has_one_place_and_is_python(fault: Fault) -> None:
    text = (ROOT / "rlhf_lightning" / fault.file).read_text()
    assert ast.dump(ast.parse(fault.put_into(text))) != ast.dump(ast.parse(text))


@pytest.mark.parametrize("test", sorted({test for fault in FAULTS for test in fault.tests}))
def test_the_tests_that_catch_faults_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file()
    assert f"def {name.partition('[')[0]}" in (ROOT / path).read_text()


def test_a_place_that_is_not_there_exactly_once_is_refused() -> None:
    fault = Fault("some.py", "a name", "x + 1", "x", ())
    assert fault.put_into("y = x + 1") == "y = x"
    for text in ("y = x", "y = x + 1, x + 1"):
        with pytest.raises(ValueError, match=r"some.py: a name: 'x \+ 1' is in the file [02] times, not once"):
            fault.put_into(text)

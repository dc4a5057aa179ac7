"""Each fault of the list still has its one place and names tests that exist. `run.py` puts the faults in."""

from __future__ import annotations

import ast
from collections import Counter

import pytest
from faults import ROOT, Fault, read_faults, read_sources
from patterns import Source

FAULTS = read_faults()


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources(ROOT)


def test_there_are_many_and_no_two_have_one_name() -> None:
    assert len(FAULTS) >= 200
    assert len(Counter(fault.group for fault in FAULTS)) >= 30
    assert len({str(fault) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_has_one_place_and_is_python(fault: Fault, sources: list[Source]) -> None:
    path, text = fault.put_into(sources)
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse((ROOT / path).read_text()))


@pytest.mark.parametrize("test", sorted({test for fault in FAULTS for test in fault.tests}))
def test_the_tests_that_catch_faults_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert (ROOT / path).is_file()
    assert f"def {name.partition('[')[0]}" in (ROOT / path).read_text()

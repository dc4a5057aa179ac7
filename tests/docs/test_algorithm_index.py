"""docs/algorithms.md has every algorithm as the code has it, its paper, and when to use it."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest
from algorithm_kinds import KINDS

from tests.conftest import TESTS

DOCS = TESTS.parent / "docs"
PAGE = (DOCS / "algorithms.md").read_text()


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "algorithm_index.py"))


def test_the_index_is_made_of_the_code(script: dict[str, Any]) -> None:
    """Else run `python docs/algorithm_index.py`."""
    assert sorted(script["kinds"](), key=lambda kind: kind.__name__) == KINDS
    assert script["with_index"](PAGE) == PAGE


@pytest.mark.parametrize("kind", KINDS)
def test_a_docstring_says_what_is_minimised_and_where_it_is_from(kind: Any, script: dict[str, Any]) -> None:
    assert kind.__doc__.startswith("Minimise ")
    assert 20 < len(script["minimises"](kind)) < 160
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{kind.__name__}` |")]
    assert len(rows) >= 2  # in the index, and in the table that says when to use it
    assert "arxiv.org/abs/" in rows[0] or kind.__name__ == "REINFORCE"  # which is older


def test_the_page_names_options_that_there_are() -> None:
    """Every `key: value` of the page in backticks is a field of an algorithm or of its KL penalty."""
    known = {name for kind in KINDS for name in kind.__dataclass_fields__} | {"kl", "reference"}
    known |= {"placement", "estimator", "ratio_weighted", "coef", "target", "gain"}
    named = re.findall(r"`((?:kl\.)?[a-z_]+): [^`]+`", PAGE)
    assert len(named) > 10
    assert [name for name in named if name.removeprefix("kl.") not in known] == []

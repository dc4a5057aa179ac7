"""Generated faults: each is another program, and annotations, messages and docstrings have none."""

from __future__ import annotations

import ast
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from generated import GROUPS, ROOT, GeneratedFault, drawn, equivalent, excuses, faults_of, files_of, wilson
from trials import exchanged

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
    found = {(fault.lines[0], fault.before, fault.after) for fault in faults_of(path, "code.py")}
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


NESTED = """
LIMIT = 3
class Clip:
    low: int = 0
    def within(self, x, high=LIMIT + 1):
        return [y for y in x
                if self.low < y and
                y < high]
    def outside(self, x):
        return [y for y in x if y not in self.within(x)]
"""


def faults_in(tmp_path: Path) -> list[GeneratedFault]:
    (tmp_path / "nested.py").write_text(NESTED)
    return list(faults_of(tmp_path / "nested.py", "nested.py"))


def test_a_fault_is_named_by_its_function_and_not_by_its_line(tmp_path: Path) -> None:
    faults = {fault.before: fault for fault in faults_in(tmp_path)}
    assert (faults["y < high"].function, faults["y < high"].called) == ("Clip.within", True)
    assert set(faults["y < high"].lines) == {8, 6}
    assert (faults["LIMIT + 1"].function, faults["LIMIT + 1"].called) == ("Clip", False)  # when the class is made
    assert not faults["0"].called
    assert not faults["3"].called


def test_a_larger_sample_and_a_changed_file_keep_the_order(tmp_path: Path) -> None:
    faults = faults_in(tmp_path)
    order = [fault.name for fault in drawn(faults, 1)]
    assert order != [fault.name for fault in drawn(faults, 2)]
    (tmp_path / "nested.py").write_text("FIRST = 1 < 2\n" + NESTED)
    again = drawn(list(faults_of(tmp_path / "nested.py", "nested.py")), 1)
    assert [fault.name for fault in again if "FIRST" not in fault.name and fault.lines[0] > 1] == order


def test_a_function_gets_the_code_of_its_fault_and_others_keep_theirs(tmp_path: Path) -> None:
    faults = faults_in(tmp_path)
    module = ModuleType("nested")
    exec(compile(NESTED, "nested.py", "exec", dont_inherit=True), vars(module))
    functions = [each for each in vars(module.Clip).values() if isinstance(each, FunctionType)]
    clip, outside = module.Clip(), module.Clip.outside.__code__
    assert clip.within([0, 1, 4]) == [1]
    fault = next(each for each in faults if each.after == "(y <= high)")
    assert exchanged(functions, "nested.py", fault.put_into(NESTED.encode()))
    assert clip.within([0, 1, 4]) == [1, 4]
    assert module.Clip.outside.__code__ is outside
    constant = next(each for each in faults if each.before == "3")
    assert not exchanged(functions[1:], "nested.py", constant.put_into(NESTED.encode()))  # no function has other code


def test_each_file_of_the_package_is_in_one_group() -> None:
    package = ROOT / "rlhf_lightning"
    files = [path for name in GROUPS for path in files_of(name, package)]
    assert sorted(files) == sorted(package.rglob("*.py"))


def test_each_equivalent_fault_is_one_of_the_package() -> None:
    for entry in equivalent():
        found = list(faults_of(ROOT / entry["file"], entry["file"]))
        assert any(excuses(entry, fault) for fault in found), entry


@pytest.mark.parametrize("name", GROUPS)
def test_every_fault_of_the_package_is_a_program_of_its_own(name: str) -> None:
    files = files_of(name, ROOT / "rlhf_lightning")[-5:]
    faults = [fault for path in files for fault in faults_of(path, path.relative_to(ROOT).as_posix())]
    assert len(faults) > 50
    for fault in drawn(faults, 0)[:20]:
        original = (ROOT / fault.file).read_bytes()
        changed = fault.put_into(original)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(original)), fault
        assert changed.count(b"\n") == original.count(b"\n")
    assert all((ROOT / test).exists() for test in GROUPS[name].tests)


def test_the_interval_of_a_score() -> None:
    assert wilson(380, 400) == pytest.approx((0.9241, 0.9674), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)

"""Which faults that nobody chose do the tests catch? Generate faults from the syntax tree and see a test fail for each.

    python tests/mutations/generated.py GROUP [-j JOBS] [--sample N] [--seed S]

A fault changes one operator, condition, number or truth value of a file of the group. The score is the share that is caught,
with its 95 % interval (Wilson). Faults of `equivalent.yaml` change no behaviour and do not count. The exit status is 1 if the
score is below the group's limit.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
import yaml
from faults import ROOT
from run import TIME_LIMIT, copied, failing_tests

EQUIVALENT = Path(__file__).with_name("equivalent.yaml")


@dataclass(frozen=True)
class Group:
    """Files of the package, and the tests that must notice a fault in them, the fastest first."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    limit: float
    """Least score: of all faults, or the lower bound of the interval where a sample is drawn."""


ALGORITHMS = ("rlhf_lightning/functional", "rlhf_lightning/algorithms", "tests/functional", "tests/algorithms")
ROLLOUTS = ("tests/rollouts", "tests/training")
PACKING = ("tests/models/test_packing.py", "tests/models/test_micro_batches.py", "tests/invariance")
GROUPS = {
    "functional": Group(("functional/*.py",), (*ALGORITHMS, "tests/evaluation"), 0.95),
    "algorithms": Group(("algorithms/*.py",), (*ALGORITHMS, "tests/stages"), 0.95),
    "buffer": Group(("rollouts/buffer*.py", "rollouts/*loader.py", "rollouts/row_source.py"), ROLLOUTS, 0.95),
    "packing": Group(("models/pack*.py", "models/micro_batches.py"), PACKING, 0.95),
    "data": Group(("data/*.py",), ("tests/data",), 0.85),
    "feedback": Group(("feedback/*.py",), ("tests/feedback",), 0.85),
    "rewards": Group(("rewards/*.py",), ("tests/rewards",), 0.85),
    "models": Group(("models/*.py",), ("tests/models",), 0.85),
}
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
TINY = 1e-6
"""Smaller numbers keep a logarithm or a division finite, and twice as much does too."""
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True)
class GeneratedFault:
    """One place of a file, and what stands there instead."""

    file: str
    line: int
    span: tuple[int, int]
    """Offsets of the place in the UTF-8 bytes of the file."""
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before} -> {self.after}"


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that may stand in the place of `node`; a negative number is no operation: -1 and 1 are often one axis."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [OPERATORS[type(node.ops[0])]()], node.comparators)  # type: ignore[list-item]
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)  # type: ignore[arg-type]
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OPERATORS[type(node.op)](), node.values)  # type: ignore[arg-type]
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not 0 < node.value < TINY:
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], node.ctx)


def places(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run: not annotations, decorators, error messages or `__all__`."""
    yield node
    skipped: list[ast.AST] = []
    for name in ("annotation", "returns", "decorator_list"):
        value = getattr(node, name, None)
        skipped += value if isinstance(value, list) else [value] if isinstance(value, ast.AST) else []
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        return
    for child in ast.iter_child_nodes(node):
        if not any(child is each for each in skipped):
            yield from places(child)


def faults_of(path: Path, file: str) -> Iterator[GeneratedFault]:
    """Yield every fault of a file."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in places(ast.parse(text)):
        for other in changed(node):
            begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
            end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
            after = ast.unparse(ast.fix_missing_locations(other))
            after = after if isinstance(other, ast.Constant | ast.Name | ast.Attribute) else f"({after})"
            before = " ".join(text[begin:end].decode().split())
            yield GeneratedFault(file, node.lineno, (begin, end), before, after)  # type: ignore[attr-defined]


def all_faults(group: Group, root: Path = ROOT) -> list[GeneratedFault]:
    """Return every fault of the group's files, but for the equivalent ones."""
    package = root / "rlhf_lightning"
    files = sorted({path for pattern in group.files for path in package.glob(pattern)})
    excused = {(each["file"], each["before"], each["after"]) for each in yaml.safe_load(EQUIVALENT.read_text())}
    found = [fault for path in files for fault in faults_of(path, path.relative_to(root).as_posix())]
    return [fault for fault in found if (fault.file, fault.before, fault.after) not in excused]


def is_caught(fault: GeneratedFault, tests: list[str], copy: Path) -> bool:
    """Put the fault into the copy, run the tests, take it out."""
    path = copy / fault.file
    original = path.read_bytes()
    begin, end = fault.span
    try:
        path.write_bytes(original[:begin] + fault.after.encode() + original[end:])
        found = failing_tests(copy, tests, TIME_LIMIT)
    finally:
        path.write_bytes(original)
    return found is None or found[1] != pytest.ExitCode.OK


def wilson(caught: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(90, 100)]
    [0.826, 0.945]
    """
    z, share = 1.96, caught / total
    centre, spread = share + z**2 / (2 * total), z * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return (centre - spread) / (1 + z**2 / total), (centre + spread) / (1 + z**2 / total)


def main() -> int:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("-j", dest="jobs", type=int, default=1, metavar="JOBS", help="faults at a time (1)")
    parser.add_argument("--sample", type=int, metavar="N", help="this many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    options = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    group, started = GROUPS[options.group], time.perf_counter()
    faults = all_faults(group)
    total = len(faults)
    if options.sample:
        faults = random.Random(options.seed).sample(faults, min(options.sample, total))
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(options.jobs):
            copies.put(copied(Path(folder).resolve() / str(job)))
        copy = copies.get()
        if failing_tests(copy, list(group.tests)) != ([], pytest.ExitCode.OK):
            print(f"without any fault the tests do not pass:\n{(copy / 'output.txt').read_text()[-4000:]}")
            return 1
        copies.put(copy)

        def borrowed(fault: GeneratedFault) -> bool:
            copy = copies.get()
            try:
                return is_caught(fault, list(group.tests), copy)
            finally:
                copies.put(copy)

        survived = 0
        with ThreadPoolExecutor(options.jobs) as pool:
            for fault, caught in zip(faults, pool.map(borrowed, faults), strict=True):
                survived += not caught
                print(f"{'caught  ' if caught else 'SURVIVED'}  {fault}", flush=True)
    share = 1 - survived / len(faults)
    low, high = wilson(len(faults) - survived, len(faults))
    print(
        f"{options.group}: {len(faults)} of {total} faults, {survived} survived: {share:.1%} caught ({low:.1%} to {high:.1%}) in "
        f"{time.perf_counter() - started:.0f} s; limit {group.limit:.0%}"
    )
    return int((low if options.sample else share) < group.limit)


if __name__ == "__main__":
    sys.exit(main())

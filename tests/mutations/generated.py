"""Which faults that nobody chose do the tests catch? Generate faults from the syntax tree and see a test fail for each.

    python tests/mutations/generated.py GROUP [--sample N] [--seed S] [--again] [--budget SECONDS]

A fault changes one operator, condition, number or truth value of a file of the group. Only the tests that execute its lines run,
the fastest first. The score is the share that is caught, with its 95 % interval (Wilson). Faults of `equivalent.yaml` change no
behaviour and do not count. Each result is appended to `generated.jsonl`: a run that was stopped continues there, and a larger
sample of the same seed begins with the smaller one. The exit status is 1 if the score is below the group's limit.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from faults import ROOT
from run import copied
from trials import DECLARATIONS, Trials

EQUIVALENT = Path(__file__).with_name("equivalent.yaml")
RESULTS = Path(__file__).with_name("generated.jsonl")


@dataclass(frozen=True)
class Group:
    """Files of the package, the tests that must notice a fault in them, and the least score."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    """Folders and files; none: those of the room of each file, and of `ELSEWHERE`."""
    limit: float
    """Least score: of all faults, or the lower bound of the interval where a sample is drawn."""


ALGORITHMS = ("rlhf_lightning/functional", "rlhf_lightning/algorithms", "tests/functional", "tests/algorithms")
ROLLOUTS = ("tests/rollouts", "tests/training")
PACKING = ("tests/models/test_packing.py", "tests/models/test_micro_batches.py", "tests/invariance")
LOADERS = ("rollouts/*loader.py", "rollouts/row_source.py", "training/loaders.py")
GROUPS = {
    "functional": Group(("functional/*.py",), (*ALGORITHMS, "tests/evaluation"), 0.95),
    "algorithms": Group(("algorithms/*.py",), (*ALGORITHMS, "tests/stages"), 0.95),
    "buffer": Group(("rollouts/buffer*.py",), ROLLOUTS, 0.95),
    "loaders": Group(LOADERS, (*ROLLOUTS, "tests/stages"), 0.95),
    "packing": Group(("models/pack*.py", "models/micro_batches.py"), PACKING, 0.95),
}
GROUPS["rest"] = Group(("**/*.py",), (), 0.85)
"""Every file that is in no group before it."""
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "run": ("tests/integration/test_endings.py", "tests/integration/test_resume.py"),
    "": ("tests/run", "tests/cli", "tests/data", "tests/functional", "tests/rewards"),
}
"""Room to tests outside its folder; the room of a file at the top of the package is ""."""
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
class Place:
    """A node that runs, and where it is."""

    node: ast.AST
    function: str = ""
    """Dotted name of the innermost function or class around it; "" at the top of the file."""
    scope: ast.AST | None = None
    """The innermost function around it, or the statement where there is none."""
    statement: int = 0
    """First line of the innermost statement."""
    called: bool = False
    """Whether it runs when a function is called, and not when the file is imported."""


@dataclass(frozen=True)
class GeneratedFault:
    """One place of a file, and what stands there instead."""

    file: str
    function: str
    lines: tuple[int, ...]
    """Of the place and the head of its statement."""
    span: tuple[int, int]
    """Offsets of the place in the UTF-8 bytes of the file."""
    before: str
    after: str
    called: bool
    digest: str
    """Of the function around it: a result is that of another program once it changes."""
    number: int = 0
    """Which of those that are alike in one function."""

    @property
    def name(self) -> str:
        """What it is called in `generated.jsonl`: the same after changes elsewhere in the file."""
        return f"{self.file}:{self.function}: {self.before} -> {self.after} #{self.number}"

    def __str__(self) -> str:
        return f"{self.file}:{self.lines[0]}: {self.before} -> {self.after}"

    def put_into(self, original: bytes) -> bytes:
        """Return the file with the fault, each other line at its place."""
        begin, end = self.span
        lost = original[begin:end].count(b"\n")
        after = f"({self.after}{chr(10) * lost})" if lost else self.after
        return original[:begin] + after.encode() + original[end:]


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


def places(place: Place) -> Iterator[Place]:
    """Yield the nodes that run: not annotations, decorators, error messages or `__all__`."""
    node = place.node
    if isinstance(node, ast.stmt):
        place = replace(place, statement=node.lineno, scope=place.scope if place.called else node)
    yield place
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from places(replace(_within(place, name), node=child))


def _within(place: Place, field: str) -> Place:
    """Return what a function or a class is to the nodes of its body, and to its defaults and bases."""
    node = place.node
    if field != "body" or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return place
    place = replace(place, function=f"{place.function}.{node.name}".lstrip("."))
    return place if isinstance(node, ast.ClassDef) else replace(place, scope=node, called=True)


def faults_of(path: Path, file: str) -> Iterator[GeneratedFault]:
    """Yield every fault of a file."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    alike: Counter[tuple[str, str, str]] = Counter()
    digests: dict[ast.AST, str] = {}
    for place in places(Place(ast.parse(text))):
        node = place.node
        for other in changed(node):
            begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
            end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
            after = ast.unparse(ast.fix_missing_locations(other))
            after = after if isinstance(other, ast.Constant | ast.Name | ast.Attribute) else f"({after})"
            before = " ".join(text[begin:end].decode().split())
            key = (place.function, before, after)
            lines = dict.fromkeys([*range(node.lineno, node.end_lineno + 1), place.statement])  # type: ignore[attr-defined]
            scope = place.scope or node
            if scope not in digests:
                digests[scope] = _digest(text, scope)
            yield GeneratedFault(
                file,
                place.function,
                tuple(lines),
                (begin, end),
                before,
                after,
                place.called,
                digests[scope],
                alike[key],
            )
            alike[key] += 1


def _digest(text: bytes, scope: ast.AST) -> str:
    """Return the hash of the lines of a node."""
    lines = text.splitlines()[scope.lineno - 1 : scope.end_lineno]  # type: ignore[attr-defined]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()[:12]


def files_of(name: str, package: Path) -> list[Path]:
    """Return the files of a group that are in no group before it."""
    found: dict[str, set[Path]] = {}
    for each, group in GROUPS.items():
        found[each] = {path for pattern in group.files for path in package.glob(pattern)}.difference(*found.values())
    return sorted(found[name])


def equivalent() -> list[dict[str, Any]]:
    """Return the entries of `equivalent.yaml`."""
    return yaml.safe_load(EQUIVALENT.read_text())  # type: ignore[no-any-return]


def excuses(entry: dict[str, Any], fault: GeneratedFault) -> bool:
    """Say whether an entry names a fault: all that are alike in its function, or the one of its `number`."""
    alike = all(entry[key] == getattr(fault, key) for key in ("file", "function", "before", "after"))
    return alike and entry.get("number", fault.number) == fault.number


def all_faults(name: str, root: Path = ROOT) -> list[GeneratedFault]:
    """Return every fault of a group's files, but for the equivalent ones."""
    files = files_of(name, root / "rlhf_lightning")
    found = [fault for path in files for fault in faults_of(path, path.relative_to(root).as_posix())]
    entries = equivalent()
    return [fault for fault in found if not any(excuses(entry, fault) for entry in entries)]


def drawn(faults: list[GeneratedFault], seed: int) -> list[GeneratedFault]:
    """Return the faults in a random order in which each keeps its place when others come and go."""
    return sorted(faults, key=lambda fault: hashlib.sha256(f"{seed} {fault.name}".encode()).digest())


def tests_of(fault: GeneratedFault, group: Group) -> tuple[str, ...]:
    """Return the folders and files whose tests must notice a fault."""
    declarations = () if fault.called else (DECLARATIONS,)
    if group.tests:
        return (*group.tests, *declarations)
    inner = Path(fault.file).parts[1:]
    room = inner[0] if len(inner) > 1 else ""
    chosen = (fault.file, *([f"tests/{room}"] if room else []), *ELSEWHERE.get(room, ()), *declarations)
    return tuple(each for each in chosen if (ROOT / each).exists())


def wilson(caught: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(90, 100)]
    [0.826, 0.945]
    """
    z, share = 1.96, caught / total
    centre, spread = share + z**2 / (2 * total), z * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return (centre - spread) / (1 + z**2 / total), (centre + spread) / (1 + z**2 / total)


def results() -> dict[tuple[str, str], str | None]:
    """Return which test caught each fault that was tried, None for a survivor, by its name and digest."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    found = [json.loads(line) for line in lines]
    return {(each["fault"], each["digest"]): each["by"] for each in found}


def try_all(faults: list[GeneratedFault], group: Group, budget: float) -> None:
    """Try each fault and append its result to the file."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder, open(RESULTS, "a") as out:
        copy = copied(Path(folder).resolve() / "0")

        def tried(fault: GeneratedFault, by: str | None) -> None:
            out.write(json.dumps({"fault": fault.name, "digest": fault.digest, "by": by}) + "\n")
            out.flush()
            print(f"{f'caught    {fault}: by {by}' if by else f'SURVIVED  {fault}'}", flush=True)

        Trials(copy, [(fault, tests_of(fault, group)) for fault in faults], tried, budget).run()


def main() -> int:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--sample", type=int, metavar="N", help="this many of them, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--again", action="store_true", help="try those again that survived")
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="of tests per fault (60)")
    options = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    group, faults = GROUPS[options.group], all_faults(options.group)
    chosen = drawn(faults, options.seed)[: options.sample]
    known = results()
    missing = [each for each in chosen if (each.name, each.digest) not in known]
    again = [each for each in chosen if options.again and known.get((each.name, each.digest), "") is None]
    if missing or again:
        try_all([*again, *missing], group, options.budget)
        known = results()
    caught = sum(known[each.name, each.digest] is not None for each in chosen)
    low, high = wilson(caught, len(chosen))
    print(
        f"{options.group}: {len(chosen)} of {len(faults)} faults (seed {options.seed}), {len(chosen) - caught} survived: "
        f"{caught / len(chosen):.1%} caught ({low:.1%} to {high:.1%}); limit {group.limit:.0%}"
    )
    return int((low if len(chosen) < len(faults) else caught / len(chosen)) < group.limit)


if __name__ == "__main__":
    sys.exit(main())

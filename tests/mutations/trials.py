"""Try faults on the tests that execute their lines, each in a process forked from one that has collected the tests.

A fault within a function takes the place of the function's code in the forked process. A fault that runs when its file is
imported is written into a copy of the package, and the tests run in a new process. Processes that a test starts itself have no
fault: it counts as survived if they alone would fail.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

import coverage
import pytest
from faults import ROOT
from run import failing_tests

CACHE = ROOT / ".pytest_cache" / "mutations"
"""Which tests execute which lines, one file per file of tests."""
DECLARATIONS = "tests/cli/test_defaults.py"
"""Reads what classes declare, and executes no line of them: tried for every fault outside of functions."""
NOT_EXCHANGED = "the code was not exchanged"
PATIENCE = 20
"""Seconds of waiting per second of the processor: other work may run beside this one."""


class Change(Protocol):
    """A fault."""

    file: str
    lines: tuple[int, ...]
    called: bool

    def put_into(self, original: bytes) -> bytes:
        """Return the file with the fault."""


class Trials:
    """A pytest plugin that tries faults in place of running the tests."""

    def __init__(
        self,
        copy: Path,
        faults: list[tuple[Any, tuple[str, ...]]],
        tried: Callable[[Any, str | None], None],
        budget: float,
    ) -> None:
        """Take each fault with the folders and files of its tests, and a function that is told the test that caught it.

        Args:
            copy: the folder of the package and its tests.
            faults: with their tests.
            tried: takes a fault, and the test that caught it.
            budget: CPU seconds of tests per fault, the fastest first: what slower ones would catch counts as survived.
        """
        self.copy, self.faults, self.tried, self.budget = copy, faults, tried, budget
        self.items: dict[str, list[pytest.Item]] = defaultdict(list)
        self.functions: dict[str, list[FunctionType]] = defaultdict(list)
        self.maps: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self.repeatable: dict[str, bool] = {}
        """Files of the package: whether `DECLARATIONS` passes after the file was executed a second time."""

    def run(self) -> None:
        """Collect the tests of all faults in the copy, and try each fault."""
        os.chdir(self.copy)
        sys.path[:0] = [str(self.copy), *(str(self.copy / "tests" / name) for name in ("", "parity"))]
        sys.dont_write_bytecode = True  # a fault of the same length within the same second would pass for its original
        os.environ["PYTHONPATH"] = str(self.copy)
        tests = list(dict.fromkeys(test for _, tests in self.faults for test in tests))
        status = pytest.main(["-q", "-s", "-p", "no:cacheprovider", *tests], plugins=[self])
        if status != pytest.ExitCode.OK:
            raise SystemExit(f"pytest ended with status {status}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note which test failed."""
        if report.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try the faults."""
        if session.testsfailed:
            raise session.Failed("a file of tests cannot be imported")
        for item in session.items:
            self.items[item.nodeid.partition("::")[0]].append(item)
        for file in {fault.file for fault, _ in self.faults}:
            with suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module_name(file))
        for each in gc.get_objects():
            if isinstance(each, FunctionType):
                self.functions[each.__code__.co_filename].append(each)
        gc.collect()
        gc.freeze()  # a collection in a forked process copies every page
        for fault, tests in self.faults:
            self.tried(fault, self.caught_by(fault, tests))
        return True

    def caught_by(self, fault: Change, tests: tuple[str, ...]) -> str | None:
        """Return the test that fails with a fault, None if none does."""
        if not fault.called and (by := self.caught_by_declarations(fault)):
            return by
        items = self.covering(fault, tests)
        if not items:
            return None
        seconds = sum(self.seconds(item) for item in items)
        if fault.called:
            by = self.forked(lambda: self.first_failure(items, fault), 5 * seconds + 20, "a process that died")
            if by != NOT_EXCHANGED:
                return "the time limit" if by is None else by or None
        return self.caught_in_a_new_process(fault, [item.nodeid for item in items], seconds)

    def caught_by_declarations(self, fault: Change) -> str | None:
        """Execute the file again with the fault in a forked process, where `DECLARATIONS` finds its classes; None if it passes.

        A file that does not pass so without a fault is left to the other tests.
        """
        items, original = self.items[DECLARATIONS], (self.copy / fault.file).read_bytes()
        if fault.file not in self.repeatable:
            by = self.forked(lambda: self.failure_when_repeated(items, fault.file, original), 60, "a process that died")
            self.repeatable[fault.file] = by == ""
        if not self.repeatable[fault.file]:
            return None
        text = fault.put_into(original)
        return self.forked(lambda: self.failure_when_repeated(items, fault.file, text), 60, "") or None

    def failure_when_repeated(self, items: list[pytest.Item], file: str, text: bytes) -> str:
        """In a forked process: return the first test that fails when a file is executed again with another text."""
        name = module_name(file)
        former, module = sys.modules[name], ModuleType(name)
        for each in ("__file__", "__loader__", "__package__", "__path__", "__spec__"):
            if hasattr(former, each):
                setattr(module, each, getattr(former, each))
        sys.modules[name] = module
        exec(compile(text, str(self.copy / file), "exec", dont_inherit=True), vars(module))
        return self.failure_of(items)

    def caught_in_a_new_process(self, fault: Change, tests: list[str], seconds: float) -> str | None:
        """Write the fault into the copy, run the tests, take it out."""
        path = self.copy / fault.file
        original = path.read_bytes()
        try:
            path.write_bytes(fault.put_into(original))
            found = failing_tests(self.copy, tests, PATIENCE * (5 * seconds + 20))
        finally:
            path.write_bytes(original)
        if found is None:
            return "the time limit"
        failed, status = found
        return None if status == pytest.ExitCode.OK else failed[0] if failed else f"status {status}"

    def first_failure(self, items: list[pytest.Item], fault: Change) -> str:
        """In a forked process: return the first test that fails with a fault; "" if none does."""
        path = self.copy / fault.file
        if not exchanged(self.functions[str(path)], str(path), fault.put_into(path.read_bytes())):
            return NOT_EXCHANGED
        return self.failure_of(items)

    def failure_of(self, items: list[pytest.Item]) -> str:
        """In a forked process: run tests until one fails, and return its name; "" if none does."""
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return self.failed[0]
        return ""

    # -- which tests execute which lines ----------------------------------------------------------------------------------

    def seconds(self, item: pytest.Item) -> float:
        """Return the CPU seconds of a test."""
        return float(self.maps[item.nodeid.partition("::")[0]]["seconds"][item.nodeid])

    def covering(self, fault: Change, tests: tuple[str, ...]) -> list[pytest.Item]:
        """Return the tests that execute a fault's lines (or its file, where it runs at the import), the fastest first."""
        found: list[pytest.Item] = []
        for file in self.items:
            if not any(file == test or file.startswith(f"{test}/") for test in tests):
                continue
            lines = self.map_of(file, fault.file)["lines"].get(fault.file, {})
            names = {
                name
                for line, covering in lines.items()
                if int(line) in fault.lines or not fault.called
                for name in covering
            }
            found += [item for item in self.items[file] if item.nodeid in names]
        found.sort(key=self.seconds)
        total = 0.0
        chosen = []
        for item in found:
            total += self.seconds(item)
            if total > self.budget:
                break
            chosen.append(item)
        return chosen

    def map_of(self, file: str, changed: str) -> dict[str, Any]:
        """Return the tests of a file by the lines that they execute in a file of the package, and the seconds of each."""
        known = self.maps.get(file) or {}
        cached = CACHE / f"{file.replace('/', '.')}.json"
        if not known and cached.exists():
            known = json.loads(cached.read_text())
        if any(known.get("digests", {}).get(each) != self.digest(each) for each in (file, changed)):
            limit = 60 * len(self.items[file]) + 600
            answer = self.forked(lambda: json.dumps(self.measured(self.items[file])), limit, "")
            known = json.loads(answer or json.dumps({"lines": {}, "seconds": {}, "failed": [file]}))
            paths = [*self.copy.glob("rlhf_lightning/**/*.py"), self.copy / file]
            names = [path.relative_to(self.copy).as_posix() for path in paths]
            known["digests"] = {name: self.digest(name) for name in names}
            for name in known["failed"]:
                print(f"fails without any fault, and is left out: {name}", flush=True)
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_text(json.dumps(known))
        self.maps[file] = known
        return known

    def digest(self, file: str) -> str:
        """Return the hash of a file."""
        return hashlib.sha256((self.copy / file).read_bytes()).hexdigest()

    def measured(self, items: list[pytest.Item]) -> dict[str, Any]:
        """In a forked process: run tests, and return the lines of the package that each executes."""
        watch = coverage.Coverage(data_file=None, source=[str(self.copy / "rlhf_lightning")], messages=False)
        seconds: dict[str, float] = {}
        watch.start()
        for item, following in zip(items, [*items[1:], None], strict=True):
            watch.switch_context(item.nodeid)
            started = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds[item.nodeid] = round(time.process_time() - started, 3)
        watch.stop()
        data, lines = watch.get_data(), {}
        for path in data.measured_files():
            contexts = data.contexts_by_lineno(path)
            name = Path(path).relative_to(self.copy).as_posix()
            lines[name] = {
                line: [each for each in names if each and each not in self.failed] for line, names in contexts.items()
            }
        return {"lines": lines, "seconds": seconds, "failed": self.failed}

    # -- processes --------------------------------------------------------------------------------------------------------

    def forked(self, work: Callable[[], str], seconds: float, default: str) -> str | None:
        """Return what a function returns in a forked process; None if it takes too long, `default` if it dies otherwise."""
        folder = self.copy.parent / "forked"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        child = os.fork()
        if not child:
            try:
                os.setpgid(0, 0)
                os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
                with open(folder / "output.txt", "w") as output:
                    os.dup2(output.fileno(), 1)
                    os.dup2(output.fileno(), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
                (folder / "answer.tmp").write_text(work())
                (folder / "answer.tmp").rename(folder / "answer")
            finally:
                os._exit(0)
        end = time.monotonic() + PATIENCE * seconds
        status, in_time = 0, True
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.005)
            if in_time and time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                in_time = False
        status = os.waitstatus_to_exitcode(done[1])
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # processes that a test left behind
        if (folder / "answer").exists():
            return (folder / "answer").read_text()
        return None if not in_time or status == -signal.SIGXCPU else default


def module_name(file: str) -> str:
    """Return the dotted name of a file of the package."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield every code object within one."""
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from codes(each)


def exchanged(functions: list[FunctionType], path: str, text: bytes) -> bool:
    """Give functions of a file the code that they have in another text of it; False if that is not possible for all."""
    others: dict[tuple[str, int], list[CodeType]] = defaultdict(list)
    for code in codes(compile(text, path, "exec", dont_inherit=True)):
        others[code.co_qualname, code.co_firstlineno].append(code)
    found = False
    for function in functions:
        code = function.__code__
        other = others[code.co_qualname, code.co_firstlineno]
        if code in other:
            continue
        if len(other) != 1 or other[0].co_freevars != code.co_freevars:
            return False
        function.__code__ = other[0]
        found = True
    return found

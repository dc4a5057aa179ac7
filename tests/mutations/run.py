"""Are the tests any good? Put in one deliberate fault after the other and see a test fail.

    python tests/mutations/run.py [-j JOBS] [NAME]

The package and its tests are copied to a temporary folder; nothing here is changed. Every fault of `faults.yaml` (or those
with NAME in their group or name) is put into the copy, the tests that it names run in a process of their own, and it is taken
out again. The exit status is 1 if a fault survives, if its place is not found exactly once, or if the tests fail without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from faults import ROOT, SEARCHED, Fault, read_faults, read_sources
from patterns import Source

COPIED = (*SEARCHED, "benchmarks", "configs", "docs", "tests")
TIME_LIMIT = 120.0
"""Seconds; a fault that keeps its tests busy for longer counts as caught."""
PRELOADED = ["torch", "transformers", "lightning.pytorch", "pytest"]
"""Imported once, and not once a fault: what is tested is not among them."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    text: str
    caught: bool


class Failures:
    """A pytest plugin that notes which tests failed."""

    def __init__(self) -> None:
        self.tests: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tests.append(report.nodeid)


def _run_tests(copy: str, tests: list[str], answer: Connection) -> None:
    """In a process of its own: say which tests failed, and how pytest ended."""
    os.chdir(copy)
    sys.path.insert(0, copy)
    sys.dont_write_bytecode = True  # a fault of the same length within the same second would pass for its original
    with open("output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    package = importlib.util.find_spec("rlhf_lightning")
    assert package is not None
    assert str(package.origin).startswith(copy), f"{package.origin} would be tested instead of the copy"
    failures = Failures()
    options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={copy}/temporary"]
    status = pytest.main([*options, *tests], plugins=[failures])
    answer.send((failures.tests, int(status)))


def failing_tests(copy: Path, tests: list[str], limit: float | None = None) -> tuple[list[str], int] | None:
    """Tests that fail in a copy and pytest's exit status (-1: it died); None where it takes longer than `limit` seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_tests, args=(str(copy), tests, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return None
        found: Any = receiver.recv()
    except EOFError:
        return [], -1
    else:
        return found
    finally:
        process.kill()
        process.join()


def outcome_of(fault: Fault, sources: list[Source], copy: Path) -> Outcome:
    """Put the fault into the copy, run its tests, take it out."""
    try:
        file, text = fault.put_into(sources)
    except ValueError as error:
        return Outcome(f"NOT FOUND  {error}", caught=False)
    path = copy / file
    original = path.read_text()
    try:
        path.write_text(text)
        found = failing_tests(copy, list(fault.tests), TIME_LIMIT)
    finally:
        path.write_text(original)
    if found is None:
        return Outcome(f"caught     {fault}: by the time limit of {TIME_LIMIT:.0f} s", caught=True)
    failed, status = found
    if failed:
        return Outcome(f"caught     {fault}: by {failed[0].rpartition('/')[2]}", caught=True)
    if status == pytest.ExitCode.OK:
        return Outcome(f"SURVIVED   {fault}", caught=False)
    output = (copy / "output.txt").read_text()[-2000:]
    return Outcome(f"NOT RUN    {fault}: pytest ended with status {status}\n{output}", caught=False)


def check(faults: list[Fault], jobs: int) -> int:
    """Run every fault, print a line each, and return how many were not caught."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            copies.put(copied(Path(folder).resolve() / str(job)))
        sources = read_sources(Path(folder).resolve() / "0")

        def borrowed(fault: Fault) -> Outcome:
            copy = copies.get()
            try:
                return outcome_of(fault, sources, copy)
            finally:
                copies.put(copy)

        copy = copies.get()
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        if failing_tests(copy, tests) != ([], pytest.ExitCode.OK):
            print(f"without any fault the tests do not pass:\n{(copy / 'output.txt').read_text()[-4000:]}")
            return len(faults)
        copies.put(copy)
        survivors = 0
        with ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(borrowed, faults):
                print(outcome.text, flush=True)
                survivors += not outcome.caught
    return survivors


def copied(copy: Path) -> Path:
    """Copy the package and its tests."""
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name in ("callbacks", "configs"):  # where the package is installed from otherwise, which has no fault
        if not (copy / "rlhf_lightning" / name).exists():
            (copy / "rlhf_lightning" / name).symlink_to(copy / name)
    return copy


def main() -> int:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="", help="only faults with this in their group or name")
    parser.add_argument("-j", dest="jobs", type=int, default=1, metavar="JOBS", help="faults at a time (1)")
    options = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    faults = [fault for fault in read_faults() if options.name in str(fault)]
    if not faults:
        parser.error(f"no fault has {options.name!r} in its group or name")
    started = time.perf_counter()
    survivors = check(faults, options.jobs)
    print(f"{len(faults)} faults, {survivors} survived ({time.perf_counter() - started:.0f} s)")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

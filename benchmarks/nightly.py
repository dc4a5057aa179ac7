"""Run the checks that take hours and write their results, with the commit that was checked, to a file.

usage: python benchmarks/nightly.py [-j JOBS] [--only STEP …] [--out FILE]

The exit status is 1 if a step fails. The file is committed: it says which commit passed last.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "nightly.md"
SLOW = "(slow or benchmark) and not distributed and not gpu"
RANDOM_OPTIONS = "drawn_at_random"
"""Part of the name of the test of command lines with random options."""
CHANGED_OPTIONS = "drawn_changes"
"""Part of the name of the test of random options that change when a run is resumed."""
CHANGES = 60
COMBINATIONS = 100
KILLS = 20
FLIPS = 10_000


@dataclass(frozen=True)
class Step:
    """A command, without the interpreter, and environment variables of its own."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = (f'"{word}"' if " " in word else word for word in self.words)
        return " ".join([*(f"{name}={value}" for name, value in self.environment), "python", *words])


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    status: int
    minutes: float
    last_line: str


def steps(jobs: int) -> dict[str, Step]:
    """Return every step by name."""
    pytest = ("-m", "pytest", "-m")
    return {
        "slow tests": Step((*pytest, SLOW, "-k", f"not {RANDOM_OPTIONS} and not {CHANGED_OPTIONS}", "-n", str(jobs))),
        "two processes": Step((*pytest, "distributed")),
        "random options": Step(
            (*pytest, "slow and not distributed", "-k", RANDOM_OPTIONS, "-n", str(jobs)),
            (("COMBINATIONS", str(COMBINATIONS)),),
        ),
        "changed options": Step(
            (*pytest, "slow", "-k", CHANGED_OPTIONS, "-n", str(jobs)), (("CHANGES", str(CHANGES)),)
        ),
        "generated input": Step(
            ("-m", "pytest", "tests/data/test_fuzz_readers.py", "tests/cli/test_fuzz_command_lines.py"),
            (("FUZZ", "nightly"),),
        ),
        "mutations": Step(("tests/mutations/run.py", "-j", str(jobs))),
        "kills": Step(("benchmarks/kill.py", "--kills", str(KILLS))),
        "flips": Step(("benchmarks/flips.py", "--flips", str(FLIPS))),
        "parts of Lightning": Step(("benchmarks/lightning_parts.py",)),
    }


def run(step: Step) -> Outcome:
    """Run a step, pass its output on and keep the last line."""
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    started, lines = time.perf_counter(), deque[str](maxlen=1)
    with subprocess.Popen(
        [sys.executable, *step.words],
        cwd=ROOT,
        env={**os.environ, **environment, **dict(step.environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.extend([line.strip()] if line.strip() else [])
    return Outcome(process.returncode, (time.perf_counter() - started) / 60, lines[0] if lines else "no output")


def commit() -> str:
    """Return the hash of the commit that is checked out, and whether files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")


def report(checked: str, machine: str, chosen: dict[str, Step], outcomes: dict[str, Outcome]) -> str:
    """Return the page of results."""
    rows = [
        f"| {name} | {_result(outcomes[name])} | {outcomes[name].minutes:.0f} | `{chosen[name]}` |" for name in outcomes
    ]
    return "\n".join([
        "# Nightly results",
        "",
        f"Commit {checked}, on {machine}.",
        "",
        "| step | result | minutes | command |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "```bash",
        "make nightly",
        "```",
        "",
    ])  # fmt: skip


def _result(outcome: Outcome) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", outcome.last_line).strip("= ").replace("|", "/")
    return text if outcome.status == 0 else f"FAILED (status {outcome.status}): {text}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-j", dest="jobs", type=int, default=2, metavar="JOBS", help="tests and faults at a time (2)")
    parser.add_argument("--only", nargs="+", choices=list(steps(1)), help="steps to run (all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"the file to write ({RESULTS.relative_to(ROOT)})")
    options = parser.parse_args()
    chosen = {name: step for name, step in steps(options.jobs).items() if options.only is None or name in options.only}
    checked = commit()
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    outcomes: dict[str, Outcome] = {}
    for name, step in chosen.items():
        print(f"== {name}: {step}", flush=True)
        outcomes[name] = run(step)
        options.out.write_text(report(checked, machine, chosen, outcomes))
    return int(any(outcome.status != 0 for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())

"""The first run alone, beside a busy core, and twice side by side: with the threads that the command line chooses and without.

usage: python benchmarks/threads.py [--iterations 20] [--repeat 3]

Times are of `fit --config ppo.yaml`, start-up included, the median of `--repeat` runs. "spinning" is what torch does by itself
(all cores, OMP_WAIT_POLICY=ACTIVE); "chosen" is the command line's choice. The exit status is 1 if a ratio misses its limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT = 1.3
WAYS = {
    "spinning": {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "ACTIVE"},
    "chosen": {},
}


def seconds(way: str, iterations: int, runs: int = 1) -> float:
    """Return the seconds until `runs` runs that start together have ended."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "rlhf_lightning", "fit", "--config", "ppo.yaml"]
        words += ["--model.iterations", str(iterations), "--trainer.enable_progress_bar", "false"]
        started = time.perf_counter()
        processes = [
            subprocess.Popen(
                [*words, "--trainer.default_root_dir", f"{folder}/{run}"],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            for run in range(runs)
        ]
        if any(process.wait() for process in processes):
            raise SystemExit("a run failed")
        return time.perf_counter() - started


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Measure, print a table and compare with the limits."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeat):
        for way in WAYS:  # in turn, so that a drift of the machine meets both
            alone = seconds(way, options.iterations)
            with busy_core():
                beside = seconds(way, options.iterations)
            found[way].append([alone, beside, seconds(way, options.iterations, runs=2)])
    medians = {way: [statistics.median(times) for times in zip(*rows, strict=True)] for way, rows in found.items()}
    print(f"{os.cpu_count()} cores, {options.iterations} iterations, median of {options.repeat}\n")
    print("| threads | alone, s | beside a busy core, s | two side by side, s |\n| --- | --- | --- | --- |")
    for way, times in medians.items():
        print(f"| {way} | " + " | ".join(f"{each:.1f}" for each in times) + " |")
    alone, beside, both = medians["chosen"]
    limits = {
        "alone, chosen / spinning": (alone / medians["spinning"][0], 1.0 + 0.05),
        "beside a busy core / alone": (beside / alone, LIMIT),
        "two side by side / one after the other": (both / (2 * alone), LIMIT),
    }
    print()
    for name, (ratio, limit) in limits.items():
        print(f"{name}: {ratio:.2f} (limit {limit:.2f})")
    return int(any(ratio > limit for ratio, limit in limits.values()))


if __name__ == "__main__":
    sys.exit(main())

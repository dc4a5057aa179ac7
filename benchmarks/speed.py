"""This library against TRL on equal work: seconds, memory, where they go, and how far the machine is from its limits.

usage: python benchmarks/speed.py peers --folder DIR      TRL 1.12 (PPO) and 1.16 (all else) in environments of their own
       python benchmarks/speed.py all --peers DIR         everything below, and tables and plots in benchmarks/README.md
       python benchmarks/speed.py equal --peers DIR       ours and TRL's, the same work on the same weights
       python benchmarks/speed.py pieces --peers DIR      ours and TRL's with the optimiser step in several passes
       python benchmarks/speed.py sweep                   ours: how cost grows
       python benchmarks/speed.py memory                  ours: memory against vocabulary and responses a prompt
       python benchmarks/speed.py roofline                what the machine can do, and the part of it that is reached
       python benchmarks/speed.py report                  tables and plots of what is measured

A measurement that is done is not made again, so a command may be stopped and repeated; `--out` names the folder that remembers.
Every measurement is a process of its own. `--kinds`, `--sizes` and `--precision` choose a part.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from peers import report
from peers.roofline import measure_machine
from peers.running import Laboratory, make_peers
from peers.work import CUT_WORK, KINDS, MEMORY, PIECES, PRECISIONS, SIDES, SIZES, SWEEPS, Job, equal_jobs

COMMANDS = ("peers", "all", "equal", "pieces", "sweep", "memory", "roofline", "report")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="models, rows, results")
    parser.add_argument("--peers", type=Path, help="the folder that `peers` made")
    parser.add_argument(
        "--pairs", type=Path, help="dialogues as JSON lines, chosen and rejected; without: generated text"
    )
    for name, known in {"kinds": KINDS, "sizes": tuple(SIZES)[:2], "precision": PRECISIONS, "sides": SIDES}.items():
        parser.add_argument(f"--{name}", type=_some(known), default=list(known), help=f"of {','.join(known)}")
    parser.add_argument("--updates", type=int, default=3, help="measured in each process; the median counts")
    parser.add_argument("--warmup", type=int, default=1, help="updates before them")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="of `peers`: where the environments go")
    parser.add_argument(
        "--existing", nargs="*", default=[], metavar="VERSION=PATH", help="of `peers`: take these instead"
    )
    return parser.parse_args()


def _some(known: tuple[str, ...]):
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return chosen

    return parse


def equal(options: argparse.Namespace) -> Iterator[Job]:
    counts = {"updates": options.updates, "warmup": options.warmup, "threads": options.threads}
    return equal_jobs(options.kinds, options.sizes, options.precision, options.sides, **counts)


def micro_batches(options: argparse.Namespace) -> Iterator[Job]:
    seen = set()
    for work in CUT_WORK:
        for count in PIECES:
            for side in options.sides:
                given = work.for_trl() if side == "trl" else work
                counts = (options.updates, options.warmup, options.threads)
                job = Job(side, given, "small", "float32", *counts, micro_batches=count)
                if job.name not in seen:
                    seen.add(job.name)
                    yield job


def sweep(options: argparse.Namespace) -> Iterator[Job]:
    for points in SWEEPS.values():
        for _, size, work in points:
            yield Job("ours", work, size, "float32", options.updates, options.warmup, options.threads)


def memory(options: argparse.Namespace) -> Iterator[Job]:
    for points in MEMORY.values():
        for _, size, work in points:
            yield Job("ours", work, size, "float32", 1, 1, options.threads, scored_by="function")


def main() -> int:
    options = arguments()
    if options.command == "peers":
        make_peers(options.folder, {name: Path(path) for name, path in (x.split("=", 1) for x in options.existing)})
        return 0
    laboratory = Laboratory(options.out, options.peers, options.pairs)
    studies = {"equal": equal, "pieces": micro_batches, "sweep": sweep, "memory": memory}
    chosen = [name for name in studies if options.command in (name, "all")]
    if options.command in ("roofline", "all"):
        measure_machine(laboratory.out, options.threads)
    good = laboratory.run(job for name in chosen for job in studies[name](options))
    everything = argparse.Namespace(
        **{**vars(options), "kinds": KINDS, "sizes": tuple(SIZES)[:2], "precision": PRECISIONS, "sides": SIDES}
    )
    report.write({name: laboratory.results(jobs(everything)) for name, jobs in studies.items()}, laboratory.out)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""One measurement in this process.

usage: python -m peers.measure JOB.json MODELS DATA.jsonl RESULT.json
"""

import importlib
import json
import os
import sys
from pathlib import Path

from peers.clock import lengths_of
from peers.work import Job


def main() -> None:
    given, models, data, found = map(Path, sys.argv[1:5])
    job = Job.of(json.loads(given.read_text()))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    side = importlib.import_module("peers.ours" if job.side == "ours" else "peers.theirs")

    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(job.threads)
    clock, versions = side.measure(job, models, data, rows)
    lengths = lengths_of(job, rows, AutoTokenizer.from_pretrained(models / job.size))
    partial = found.with_suffix(".partial")
    partial.write_text(json.dumps(clock.result(job, lengths, versions), indent=1) + "\n")
    os.replace(partial, found)


if __name__ == "__main__":
    main()

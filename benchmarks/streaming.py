"""A large file, streamed: seconds to the first step, peak memory, and a run that is killed and resumed.

    python benchmarks/streaming.py [--rows 2000000] [--few 20000] [--steps 150]

Writes JSON lines of that many rows into a temporary folder, which it removes, and fine-tunes the playground's model on them with
`data.streaming`. Prints the seconds from the start of the process to the end of the first step, the peak memory beside that of a
run on few rows, and whether a run that SIGKILL ended and `--ckpt_path last` resumed was given the same rows as one that was not.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parents[1]
WORDS = "duck owl wolf fox hen cat dog cow pig bee".split()
"""Ten words of the playground, one for each digit of a row's number."""
MOST_MEMORY = 1.2
FIRST_STEP = 20.0


class RowLog(Callback):
    """Append the step, the time and a hash of the tokens of every batch to `rows.log`, so that two runs can be compared."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        digest = hashlib.sha256(batch.tokens.numpy().tobytes()).hexdigest()[:16]
        with open(Path(trainer.default_root_dir) / "rows.log", "a", encoding="utf-8") as file:
            file.write(f"{trainer.global_step} {time.time():.3f} {digest}\n")


def write_rows(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            digits = " ".join(WORDS[int(digit)] for digit in f"{number:07d}")
            file.write(json.dumps({"prompt": f"tell me about {digits}", "completion": digits, "number": number}) + "\n")


def config_of(rows: Path, steps: int) -> dict[str, Any]:
    return {
        "trainer": {
            "max_steps": steps,
            "limit_val_batches": 0,
            "callbacks": [
                {"class_path": "streaming.RowLog"},
                {"class_path": "Checkpoints", "init_args": {"every_n_steps": 10}},
            ],
        },
        "model": {"class_path": "SupervisedStage", "init_args": {"model": {"name_or_path": "playground/sft"}}},
        "data": {
            "class_path": "InstructionData",
            "init_args": {"train": str(rows), "streaming": True, "batch_size": 8, "validation_fraction": 0},
        },
    }


def start(rows: Path, folder: Path, steps: int, *words: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    config = folder / "given.yaml"
    config.write_text(yaml.safe_dump(config_of(rows, steps)))
    command = [sys.executable, "-m", "rlhf_lightning", "fit", "--config", str(config)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [*command, "--trainer.default_root_dir", str(folder), *words],
        env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def log_of(folder: Path) -> list[tuple[int, float, str]]:
    path = folder / "rows.log"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split() for line in lines]
    return [(int(step), float(when), digest) for step, when, digest in found]


def whole_run(rows: Path, folder: Path, steps: int) -> tuple[float, float, list[tuple[int, float, str]]]:
    """Seconds to the end of the first step, peak memory in MiB, and the rows of every step."""
    began = time.time()
    process = start(rows, folder, steps)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(output)
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        peaks = [float(row["memory/peak"]) for row in csv.DictReader(file) if row.get("memory/peak")]
    log = log_of(folder)
    return log[0][1] - began, max(peaks) * 1024, log


def killed_run(rows: Path, folder: Path, steps: int) -> tuple[int, list[tuple[int, float, str]]]:
    """The step at which the run was killed, and the rows of every step of the run that resumed it."""
    process = start(rows, folder, steps)
    while process.poll() is None and len(log_of(folder)) < steps // 2 + 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = len(log_of(folder))
    (folder / "rows.log").unlink()
    process = start(rows, folder, steps, "--ckpt_path", "last")
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(output)
    return killed, log_of(folder)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--few", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, count in (("few", given.few), ("many", given.rows)):
            write_rows(folder / f"{name}.jsonl", count)
        size = (folder / "many.jsonl").stat().st_size / 2**20
        found = {name: whole_run(folder / f"{name}.jsonl", folder / name, given.steps) for name in ("few", "many")}
        killed, resumed = killed_run(folder / "many.jsonl", folder / "killed", given.steps)
    for name, count in (("few", given.few), ("many", given.rows)):
        first, peak, _ = found[name]
        print(f"{count:>9,} rows: first step after {first:.1f} s, peak memory {peak:.0f} MiB")
    ratio = found["many"][1] / found["few"][1]
    print(f"the file has {size:.0f} MiB; peak memory {ratio:.3f} times that of {given.few:,} rows")
    rows = {step: digest for step, _, digest in found["many"][2]}
    same = all(rows[step] == digest for step, _, digest in resumed) and resumed[-1][0] == given.steps
    print(f"killed at step {killed}, resumed at step {resumed[0][0]}: {'the same rows' if same else 'OTHER ROWS'}")
    return (
        0
        if same and ratio <= MOST_MEMORY and found["many"][0] <= FIRST_STEP and len(set(rows.values())) == len(rows)
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())

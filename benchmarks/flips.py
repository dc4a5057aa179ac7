"""Flip bits of checkpoints of every stage, one at a time, and load them: each must be refused, or be what was saved.

usage: python benchmarks/flips.py [--flips 10000] [--seed 0] [--only ppo …] [--out FOLDER]

Every case is a run of one optimiser step, and its last checkpoint. Half of the flips are anywhere in the file; the others are in
its first and last 4 KiB, where an archive has its headers, its directory and its digest. Exit status 1 if a changed checkpoint
loads as anything but the original.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from rlhf_lightning.__main__ import main as command
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints
from rlhf_lightning.run.checkpoint_integrity import refuse_changed

SMALL = ["--data.size", "8", "--data.validation_size", "4", "--data.batch_size", "4", "--trainer.max_steps", "1"]
ONLINE = [*SMALL, "--model.iterations", "1", "--trainer.val_check_interval", "1.0"]
SFT = ["--config", "sft.yaml", *SMALL, "--trainer.check_val_every_n_epoch", "1"]
FSDP = ["--config", "fsdp.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
CASES = {
    "sft": SFT,
    "sft_sharded": [*SFT, *FSDP],
    "reward": ["--config", "reward.yaml", *SMALL],
    "ppo": ["--config", "ppo.yaml", *ONLINE],
    "dpo_offline": ["--config", "dpo_offline.yaml", *SMALL],
    "ppo_lora": ["--config", "ppo.yaml", *ONLINE, "--model.policy.lora", '{"r": 4, "alpha": 8}'],
}
EDGE = 4096
"""Bytes at each end of a file."""


def checkpoint_of(name: str, folder: Path) -> Path:
    """Run a case, and return its last checkpoint: a file, or the folder of a sharded run."""
    words = ["fit", *CASES[name], "--trainer.default_root_dir", str(folder / name)]
    status = command([*words, "--trainer.enable_progress_bar", "false"])
    assert status == 0, f"{name} ended with status {status}"
    return (folder / name / "checkpoints" / "last.ckpt").resolve()


def load(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint as a run does before it resumes; None for a folder, whose bytes alone are checked.

    Raises:
        UserError: it is refused.
    """
    if path.is_dir():
        refuse_changed(path)
        return None
    return AtomicCheckpoints().load_checkpoint(path, weights_only=True)


def same(first: Any, second: Any) -> bool:
    """Whether two states hold the same, bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return bool(first == second) or first != first


def place_in(size: int, at_an_end: bool, rng: random.Random) -> int:
    """Choose a byte of a file, anywhere or in its first and last `EDGE` bytes."""
    if not at_an_end or size <= 2 * EDGE:
        return rng.randrange(size)
    return rng.choice((rng.randrange(EDGE), size - 1 - rng.randrange(EDGE)))


def flip(file: Path, place: int, bit: int) -> None:
    """Change one bit of a file; the same call restores it."""
    with open(file, "r+b") as stream:
        stream.seek(place)
        value = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([value ^ 1 << bit]))


def try_flips(path: Path, count: int, rng: random.Random) -> tuple[int, int]:
    """Flip `count` bits of a checkpoint, one at a time.

    Returns:
        How often it was refused, and how often it loaded as something else.
    """
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    original, refused, wrong = load(path), 0, 0
    for number in range(count):
        file = rng.choice(files)
        place, bit = place_in(file.stat().st_size, number % 2 == 1, rng), rng.randrange(8)
        flip(file, place, bit)
        try:
            found = load(path)
        except UserError:
            refused += 1
        else:
            if path.is_dir() or not same(original, found):
                wrong += 1
                print(f"{file}: byte {place}, bit {bit} loads as something else", flush=True)
        flip(file, place, bit)
    assert same(original, load(path)), "the checkpoint was not restored"
    return refused, wrong


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=10000, help="over all cases (10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rng, totals = random.Random(options.seed), [0, 0, 0]
    folder = options.out or Path(tempfile.mkdtemp(prefix="flips-"))
    print("| checkpoint | MiB | flips | refused | loaded as the original | as anything else | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for number, name in enumerate(options.only):
        path = checkpoint_of(name, folder)
        size = sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
        count = options.flips // len(options.only) + (number < options.flips % len(options.only))
        started = time.perf_counter()
        refused, wrong = try_flips(path, count, rng)
        seconds = time.perf_counter() - started
        row = (f"{size / 2**20:.1f}", count, refused, count - refused - wrong, wrong, f"{seconds:.0f}")
        print(f"| {name} | {' | '.join(map(str, row))} |", flush=True)
        totals = [total + each for total, each in zip(totals, (count, refused, wrong), strict=True)]
    print(f"{totals[0]} flips: {totals[1]} refused, {totals[2]} loaded as anything but the original")
    return int(totals[2] > 0)


if __name__ == "__main__":
    sys.exit(main())

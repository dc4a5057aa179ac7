"""Kill runs with SIGKILL at random moments, resume them until they are done, and compare with the run that nobody killed.

usage: python benchmarks/kill.py [--kills 50] [--seed 0] [--only ppo …] [--out FOLDER]

Every run writes a checkpoint after each optimiser step. A moment is drawn as a phase (writing responses, scoring them, an
optimiser step, saving, ending) and which of its occurrences, then up to 20 ms into it. Every file of the folder must be that of
the uninterrupted run: config, metrics, samples, summary, curves, export and checkpoints, tensors bitwise, without clocks.
Ending is the time after the last checkpoint: the last validation, averaged weights, calibration, export. Exit status 1 if a file
differs.
"""

import argparse
import contextlib
import csv
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes are forked: there must be no thread pool
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file

import rlhf_lightning.cli.lightning
from rlhf_lightning.__main__ import main as command
from rlhf_lightning.rollouts import pipeline, responses
from rlhf_lightning.run.curves import Curves
from rlhf_lightning.run.ending import Ending
from rlhf_lightning.run.export import Export
from rlhf_lightning.run.summary import Summary
from rlhf_lightning.stages.stage import Stage
from rlhf_lightning.training import validation

PHASES = ("elsewhere", "writing", "scoring", "updating", "saving", "ending")
MOMENTS = (
    (responses.ResponseGenerator, "generate", "writing"),
    (pipeline, "scores_of", "scoring"),
    (validation, "reward_scores", "scoring"),
    (LightningModule, "optimizer_step", "updating"),
    (torch, "save", "saving"),
    (Ending, "on_train_end", "ending"),
    (Stage, "on_train_end", "ending"),
    (Summary, "on_fit_end", "ending"),
    (Curves, "on_fit_end", "ending"),
    (Export, "on_fit_end", "ending"),
)
"""Whose function is which phase: `scores_of` is of rollouts, `reward_scores` of validations."""
SMALL = ["--data.size", "16", "--data.validation_size", "6", "--data.batch_size", "4"]
ROLLOUTS = [*SMALL, "--model.iterations", "3", "--trainer.val_check_interval", "0.5"]
SFT = ["--config", "sft.yaml", "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"]
LORA = {"r": 4, "alpha": 8}
CASES = {
    "ppo": ["--config", "ppo.yaml", "--model.algorithm.minibatches", "2", *ROLLOUTS],
    "reinforce": ["--config", "reinforce.yaml", *ROLLOUTS],
    "grpo": ["--config", "grpo.yaml", *ROLLOUTS],
    "dpo": ["--config", "dpo.yaml", *ROLLOUTS],
    "dpo_offline": ["--config", "dpo_offline.yaml", *SMALL, "--trainer.max_epochs", "2"],
    "sft": [*SFT, *SMALL],
    "reward": ["--config", "reward.yaml", *SMALL, "--trainer.max_epochs", "2"],
}
STEPS = ["--trainer.max_steps", "3"]
CASES |= {
    "reward_steps": [*CASES["reward"], *STEPS],
    "sft_average": [
        *CASES["sft"],
        "--trainer.callbacks+",
        "EMAWeightAveraging",
        "--trainer.callbacks.decay",
        "0.5",
        *STEPS,
    ],
    "ppo_steps": [*CASES["ppo"], *STEPS],
}
CASES |= {
    f"{name}_lora": [*words, f"--model.{'model' if name in ('sft', 'reward') else 'policy'}.lora", json.dumps(LORA)]
    for name, words in CASES.items()
}
CLOCKS = ("time/", "throughput/", "memory/")
SAVING = "trainer:\n  callbacks:\n    - class_path: Checkpoints\n      init_args: {every_n_steps: 1}\n"


class Watched:
    """A page that the process writes and we read: which phase it is in, and how often it entered each."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, 4096)

    def enter(self, phase: int) -> None:
        self.page[0] = phase
        self.page[phase] = min(255, self.page[phase] + 1)

    def mark(self, owner: object, name: str, phase: str) -> None:
        number, original = PHASES.index(phase), getattr(owner, name)

        def marked(*args, **kwargs):
            before = self.page[0]
            self.enter(number)
            try:
                return original(*args, **kwargs)
            finally:
                self.page[0] = before

        setattr(owner, name, marked)

    def counts(self) -> list[int]:
        return list(self.page[: len(PHASES)])


def start(words: list[str], watched: Watched, log: Path) -> int:
    """Run a command line in a forked process, which spares it the imports."""
    watched.page[: len(PHASES)] = bytes(len(PHASES))
    process = os.fork()
    if process:
        return process
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for owner, name, phase in MOMENTS:
        watched.mark(owner, name, phase)
    status = command([*words, "--trainer.enable_progress_bar", "false"])
    sys.stdout.flush()
    os._exit(status)


def ended(process: int) -> int | None:
    """The exit status, None while it runs."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def kill_at(process: int, watched: Watched, phase: int, occurrence: int, delay: float) -> bool:
    """Kill in the given moment; False if the run ended before it came."""
    while watched.page[phase] < occurrence:
        status = ended(process)
        if status is not None:
            assert status == 0, f"the run failed with status {status}"
            return False
        time.sleep(0.0002)
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def left(folder: Path) -> dict[str, Any]:
    """Every file of a run's folder by its path, without what a clock decides."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)): content(path) for path in files}


def content(path: Path) -> Any:
    if path.is_symlink():
        return os.readlink(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".ckpt":
        return torch.load(path, weights_only=True)
    if path.name == "metrics.csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    return path.read_bytes()


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two values differ; keys of measured times and memory do not count."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = [name for name in {**first, **second} if not str(name).startswith(CLOCKS)]
        missing = [f"{where}/{name} is in one alone" for name in names if not (name in first and name in second)]
        both = [name for name in names if name in first and name in second]
        return missing + [line for name in both for line in differences(first[name], second[name], f"{where}/{name}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [line for place, (one, other) in pairs for line in differences(one, other, f"{where}[{place}]")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape and first.equal(second)
        return [] if same or bool((first.isnan() & second.isnan()).all()) else [f"{where}: tensors differ"]
    return [] if first == second else [f"{where}: {first!r:.80} and {second!r:.80}"]


def told(moments: dict[str, int]) -> str:
    """How often each phase was met."""
    return ", ".join(f"{phase} {count}" for phase, count in moments.items() if count) or "in none, it ended first"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    assert rlhf_lightning.cli.lightning
    rng, watched = random.Random(options.seed), Watched()
    folder = options.out or Path(tempfile.mkdtemp(prefix="kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saving.yaml").write_text(SAVING)
    where: Counter[str] = Counter()
    wholes: dict[str, tuple[dict, list[int]]] = {}
    kills = runs = equal = 0
    while kills < options.kills:
        name = options.only[runs % len(options.only)]
        words = ["fit", *CASES[name], "--config", str(folder / "saving.yaml")]
        if name not in wholes:
            process = start([*words, "--trainer.default_root_dir", str(folder / name)], watched, folder / f"{name}.log")
            _, status = os.waitpid(process, 0)
            assert status == 0, f"{name} failed, see {folder / name}.log"
            wholes[name] = left(folder / name), watched.counts()
            print(f"{name:18} {'whole':10} {told(dict(zip(PHASES[1:], wholes[name][1][1:], strict=True)))}", flush=True)
        counts, local_rows, own = wholes[name][1], folder / f"{name}-{runs}", Counter()
        again = [*words, "--trainer.default_root_dir", str(local_rows), "--ckpt_path", "last"]
        for _ in range(min(2, options.kills - kills)):
            phase = rng.choice([i for i in range(1, len(PHASES)) if counts[i]])
            process = start(again, watched, folder / f"{name}-{runs}.log")
            if not kill_at(process, watched, phase, rng.randint(1, counts[phase]), rng.uniform(0, 0.02)):
                break
            kills += 1
            own[PHASES[phase]] += 1
        process = start(again, watched, folder / f"{name}-{runs}.log")
        _, status = os.waitpid(process, 0)
        found = differences(left(local_rows), wholes[name][0]) if status == 0 else [f"status {status}"]
        good = not found
        runs, equal, where = runs + 1, equal + good, where + own
        print(
            f"{name:18} {'equal' if good else 'DIFFERENT':10} killed {told(own)}{'; '.join(['', *found[:5]])}",
            flush=True,
        )
    print(
        f"{kills} kills ({', '.join(f'{n} while {phase}' for phase, n in where.items())}) in {runs} runs: {equal} of {runs} equal"
    )
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())

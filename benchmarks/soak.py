"""Thousands of PPO iterations in one process: memory, objects, handles, threads and pace must not grow.

usage: python benchmarks/soak.py [--iterations 2000] [--every 100]

The policy has about 10,000 parameters, so that what grows is not hidden behind what stays. Critic, reference and all default
callbacks are on; there are a hundred validations and as many checkpoints. Exit status 1 if between a tenth of the run and its
end the resident size grows by more than 2 %, if there are more tensors, descriptors or threads, an object more for every tenth
iteration or an allocated block more for every second (this script's own notes are some), or if the last iterations take 1.5 times
the processor time of those after the first tenth.
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import yaml
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

from rlhf_lightning.__main__ import main as command

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
PARTS = 4
"""Optimiser steps of an iteration."""


class Watch(Callback):
    """Notes what this process holds, every so many iterations."""

    seen: ClassVar[list[dict[str, float]]] = []
    parameters = 0

    def __init__(self, every: int) -> None:
        self.every, self.batches, self.since = every, 0, (0.0, 0.0)

    def on_train_start(self, trainer, pl_module):
        Watch.parameters = sum(p.numel() for p in pl_module.parameters())
        self.since = (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs):
        self.batches += 1
        iteration, rest = divmod(self.batches, PARTS)
        if rest or iteration % self.every:
            return
        wall, cpu = (
            1000 * (now - then) / self.every
            for now, then in zip((time.perf_counter(), time.process_time()), self.since, strict=True)
        )
        self.seen.append({"iteration": iteration, **held(), "ms": wall, "CPU ms": cpu})
        self.since = (time.perf_counter(), time.process_time())


def held() -> dict[str, float]:
    """What this process holds once nothing is left to collect."""
    gc.collect()
    objects = gc.get_objects()
    return {
        "resident MiB": next(
            int(line.split()[1]) / 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmRSS")
        ),
        "objects": len(objects),
        "blocks": sys.getallocatedblocks(),
        "tensors": sum(issubclass(type(item), torch.Tensor) for item in objects),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python threads": threading.active_count(),
    }


def config(folder: Path, iterations: int, every: int) -> dict:
    """The whole run; nothing but the sizes differs from what a user would write."""
    return {
        "trainer": {
            "val_check_interval": 0.01,
            "default_root_dir": str(folder / "run"),
            "callbacks": [{"class_path": "soak.Watch", "init_args": {"every": every}}],
        },
        "model": {
            "class_path": "PolicyStage",
            "init_args": {
                "policy": {"config": MODEL, "tokenizer": "playground/sft"},
                "algorithm": {"class_path": "PPO", "init_args": {"epochs": 2, "minibatches": PARTS // 2}},
                "reward": {"class_path": "LengthReward", "init_args": {"limit": 4}},
                "reference": "full",
                "generation": {"class_path": "Sampler", "init_args": {"max_new_tokens": 8}},
                "iterations": iterations,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            },
        },
        "data": {"class_path": "PlaygroundPrompts", "init_args": {"size": 64, "validation_size": 8, "batch_size": 8}},
    }


def faults(seen: list[dict[str, float]]) -> list[str]:
    """What grew between a tenth of the run and its end; the pace is that of the sample after."""
    early, later, late = seen[len(seen) // 10 - 1], seen[len(seen) // 10], seen[-1]
    passed = late["iteration"] - early["iteration"]
    grown = {name: late[name] - early[name] for name in early}
    checks = {
        "the resident size grew by more than 2 %": grown["resident MiB"] > 0.02 * early["resident MiB"],
        "there is an object more for every tenth iteration": grown["objects"] > passed / 10,
        "there is a block more for every second iteration": grown["blocks"] > passed / 2,
        "the pace fell by half": late["CPU ms"] > 1.5 * later["CPU ms"],
    } | {f"there are more {name}": grown[name] > 0 for name in ("tensors", "descriptors", "threads", "python threads")}
    return [said for said, failed in checks.items() if failed]


def show(seen: list[dict[str, float]]) -> None:
    table = Table(*seen[0], box=None)
    for row in seen:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="at most a tenth of the iterations")
    options = parser.parse_args()
    if options.every * 10 > options.iterations:
        parser.error("--every must be at most a tenth of --iterations")
    sys.modules.setdefault("soak", sys.modules[__name__])
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        path = Path(folder) / "soak.yaml"
        path.write_text(yaml.safe_dump(config(Path(folder), options.iterations, options.every)))
        status = command(["fit", "--config", str(path)])
    show(Watch.seen)
    found = ["the run failed"] if status else faults(Watch.seen)
    first, last = Watch.seen[len(Watch.seen) // 10 - 1], Watch.seen[-1]
    print(
        f"{Watch.parameters} parameters with the critic; resident size from iteration {first['iteration']} to "
        f"{last['iteration']}: {last['resident MiB'] / first['resident MiB'] - 1:+.2%}; {'; '.join(found) or 'nothing grows'}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

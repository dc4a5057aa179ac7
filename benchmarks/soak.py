"""Thousands of PPO iterations in one process: memory, handles, threads and pace must not grow.

usage: python benchmarks/soak.py [--iterations 2000] [--every 100]

The policy has about 10,000 parameters, so that what grows is not hidden behind what stays. All default callbacks are on,
there are ten validations and as many checkpoints. Exit status 1 if the resident size after a tenth of the run and at its end
differ by more than 2 %, if descriptors or threads are more at the end, or if iterations become half as slow again.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import yaml
from lightning.pytorch import Callback

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


class Watch(Callback):
    """Notes what this process holds, every so many iterations."""

    seen: ClassVar[list[dict]] = []

    def __init__(self, every: int, parts: int) -> None:
        self.every, self.parts, self.batches, self.since = every, parts, 0, time.process_time()

    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs):
        self.batches += 1
        iteration, rest = divmod(self.batches, self.parts)
        if rest or iteration % self.every:
            return
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        now = time.process_time()
        row = {
            "iteration": iteration,
            "resident MiB": int(status["VmRSS"].split()[0]) / 1024,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count() + int(status["Threads"]),
            "CPU ms an iteration": 1000 * (now - self.since) / self.every,
            "parameters": sum(p.numel() for p in pl_module.parameters()),
        }
        self.seen.append(row)
        self.since = now
        print(
            "  ".join(
                f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
        sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    sys.modules.setdefault("soak", sys.modules[__name__])
    run = {
        "trainer": {
            "val_check_interval": 0.1,
            "default_root_dir": str(folder / "run"),
            "callbacks": [{"class_path": "soak.Watch", "init_args": {"every": options.every, "parts": 4}}],
        },
        "model": {
            "class_path": "PolicyStage",
            "init_args": {
                "policy": {"config": MODEL, "tokenizer": "playground/sft"},
                "algorithm": {"class_path": "PPO", "init_args": {"epochs": 2, "minibatches": 2}},
                "reward": {"class_path": "LengthReward", "init_args": {"limit": 4}},
                "reference": "full",
                "generation": {"class_path": "Sampler", "init_args": {"max_new_tokens": 8}},
                "iterations": options.iterations,
            },
        },
        "data": {"class_path": "PlaygroundPrompts", "init_args": {"size": 64, "validation_size": 8, "batch_size": 8}},
    }
    (folder / "soak.yaml").write_text(yaml.safe_dump(run))
    status = command(["fit", "--config", str(folder / "soak.yaml"), "--trainer.enable_progress_bar", "false"])
    early = next(row for row in Watch.seen if row["iteration"] >= options.iterations // 10)
    late = Watch.seen[-1]
    growth = late["resident MiB"] / early["resident MiB"] - 1
    paces = [row["CPU ms an iteration"] for row in Watch.seen]
    slower = statistics.median(paces[-3:]) / statistics.median(paces[1:4])
    same = all(late[name] <= early[name] for name in ("descriptors", "threads"))
    print(
        f"{late['parameters']} parameters with the critic; resident size at iteration {early['iteration']} and "
        f"{late['iteration']}: {growth:+.2%}; descriptors and threads {'no more' if same else 'MORE'}; pace x{slower:.2f}"
    )
    return 0 if status == 0 and growth < 0.02 and same and slower < 1.5 else 1


if __name__ == "__main__":
    sys.exit(main())

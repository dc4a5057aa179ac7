"""Every online algorithm on the playground, three seeds each: held-out true reward before and after.

usage: python benchmarks/algorithms.py [--seeds 0 1 2] [--runs PPO …] [--out FOLDER]

A run counts as learned when it covers at least a quarter of the way from its start to the best possible.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RUNS = {
    "PPO": ["--config", "ppo.yaml"],
    "REINFORCE": ["--config", "reinforce.yaml"],
    "GRPO": ["--config", "grpo.yaml"],
    "DPO, online": ["--config", "dpo.yaml"],
    "PPO file, algorithm DPO": ["--config", "ppo.yaml", "--model.algorithm", "DPO"],
    "PPO file, algorithm REINFORCE": ["--config", "ppo.yaml", "--model.algorithm", "REINFORCE"],
}


def one(words, seed, folder):
    started = time.time()
    command = [sys.executable, "-m", "rlhf_lightning", "fit", *words, "--seed_everything", str(seed)]
    subprocess.run([*command, "--trainer.default_root_dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
    true = json.loads((folder / "summary.json").read_text())["val/reward/true"]
    return true, (true["after"] - true["before"]) / (true["best"] - true["before"]), time.time() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    options = parser.parse_args()
    header = [f"seed {seed}" for seed in options.seeds]
    print("|".join(["", " run ", " before ", *(f" {name} " for name in header), " way to the best ", " seconds ", ""]))
    print("|".join(["", *["---"] * (len(header) + 4), ""]), flush=True)
    for name in options.runs:
        words = RUNS[name]
        results = [one(words, seed, options.out / name.replace(" ", "-") / str(seed)) for seed in options.seeds]
        cells = [f"{true['after']:.3f}" for true, _, _ in results]
        ways = ", ".join(f"{way:.0%}" for _, way, _ in results)
        seconds = sorted(took for _, _, took in results)[len(results) // 2]
        print(
            "| " + " | ".join([name, f"{results[0][0]['before']:.3f}", *cells, ways, f"{seconds:.0f}"]) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Measure the feedback loop: whether kills change what it ends with, and what several rounds give.

    python benchmarks/loop.py kill                     # ten kills at random moments, against a loop that nobody kills
    python benchmarks/loop.py study --seeds 5          # three rounds against one round with three times the labels at once
    python benchmarks/loop.py strategies --seeds 5     # a strategy that chooses questions against random ones, at two budgets

`kill` starts a tiny loop of three rounds with simulated annotators and kills it with SIGKILL: half of the time its present run
too, half of the time the loop alone, so that the run lives on. Labels must be the same line by line, and the weights of every
round's reward model and policy bit by bit. `study` prints the mean paired difference of the policy's true reward on held-out
prompts, with its 95 % interval; `strategies` prints that of `disagreement` less `random` after two rounds, whose reward models
have ten heads. Both keep their loops in the folder of `--runs` and continue those that are not done. The exit status is 1 if a
kill changed something.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from questions import STUDENT
from safetensors.torch import load_file

ROUNDS = 3
TINY = {
    "loop.yaml": f"""
reward: [reward.yaml, loop_reward.yaml, tiny_reward.yaml]
policy: [ppo.yaml, tiny_policy.yaml]
rounds: {ROUNDS}
labels: 24
judgements_per_item: 3
annotators: simulated
reconcile: dawid-skene
""",
    "tiny_reward.yaml": """
trainer:
  max_epochs: 4
  callbacks: [{class_path: Checkpoints, init_args: {every_n_steps: 1}}]
""",
    "tiny_policy.yaml": """
trainer:
  callbacks: [{class_path: Checkpoints, init_args: {every_n_steps: 1}}]
model: {init_args: {iterations: 4}}
data: {init_args: {size: 256, validation_size: 16, batch_size: 32}}
""",
}
STUDY = {
    "study_policy.yaml": """
trainer: {val_check_interval: 1.0, enable_progress_bar: false}
model: {init_args: {iterations: 20}}
data: {init_args: {validation_size: 512}}
""",
    "study_reward.yaml": """
trainer: {enable_progress_bar: false}
""",
    "study_heads.yaml": """
trainer: {enable_progress_bar: false}
model: {init_args: {heads: 10}}
""",
}
"""Overlays of the shipped configs: half of the iterations, and the true reward on more prompts, before and after."""
BUDGETS = (32, 96)
"""Labels of each of the two rounds of `strategies`."""


def prepared(folder: Path) -> Path:
    """Make a folder with the configs of a tiny loop."""
    folder.mkdir()
    for name, text in TINY.items():
        (folder / name).write_text(text)
    return folder


def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start the loop of a folder; its output goes to a file."""
    command = [sys.executable, "-m", "rlhf_lightning", "loop", "--config", "loop.yaml", *words]
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def run(folder: Path, *words: str) -> float:
    """Run the loop of a folder to its end and return the seconds."""
    began = time.monotonic()
    if start(folder, *words).wait():
        raise SystemExit((folder / "log.txt").read_text()[-2000:])
    return time.monotonic() - began


def kill(process: subprocess.Popen[bytes], with_run: bool) -> None:
    """Kill the loop, and perhaps the run that it has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if with_run else []
    for number in (process.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    process.wait()


def differences(one: Path, other: Path) -> list[str]:
    """Return what two loops did not end with alike."""
    found = []
    for number in range(ROUNDS):
        first, second = (folder / "loop" / f"round-{number:02d}" for folder in (one, other))
        for name in ("labels.jsonl", "held_out.jsonl"):
            if (first / name).read_bytes() != (second / name).read_bytes():
                found.append(f"{second / name}")
        for stage in ("reward", "policy"):
            weights = [load_file(folder / stage / "export" / "model.safetensors") for folder in (first, second)]
            equal = weights[0].keys() == weights[1].keys() and all(
                bool((value == weights[1][name]).all()) for name, value in weights[0].items()
            )
            if not equal:
                found.append(f"{second / stage / 'export'}")
    return found


def kills(folder: Path, count: int, seed: int) -> int:
    """Kill loops at random moments, let them end, and compare each with one that nobody killed.

    A loop that ends before it was killed `count` times is compared, and the next one is killed.
    """
    rng = random.Random(seed)
    whole = prepared(folder / "whole")
    seconds = run(whole)
    print(f"without a kill: {seconds:.0f} s", flush=True)
    done, loops, found = 0, 0, list[str]()
    while done < count:
        loops += 1
        killed = prepared(folder / f"killed-{loops}")
        while done < count:
            process, with_run = start(killed), rng.random() < 0.5
            end = time.monotonic() + rng.uniform(0.03, 0.25) * seconds
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is not None:
                break
            state = sorted((killed / "loop").glob("round-*/*"), key=lambda path: path.stat().st_mtime)
            kill(process, with_run)
            done += 1
            newest = state[-1].relative_to(killed) if state else "-"
            print(f"kill {done}{' with its run' if with_run else ''}: newest file {newest}", flush=True)
        run(killed)
        found += differences(whole, killed)
    same = f"{done} kills in {loops} loops: the labels and weights of all {ROUNDS} rounds are the same"
    print("\n".join(found) or same)
    return 1 if found else 0


def final(work: Path, reward: str, *words: str) -> tuple[float, float]:
    """Return the true reward of the supervised model and of the last round's policy, from the tree where the loop is done.

    Args:
        work: folder of the loop; its name is unique among the loops of a study.
        reward: name of the last overlay of the reward model.
        words: further words of the command, `--rounds` among them.
    """
    measured = work / "loop" / f"round-{int(words[words.index('--rounds') + 1]) - 1:02d}" / "measured.json"
    if not measured.is_file():
        work.mkdir(parents=True, exist_ok=True)
        for name, text in STUDY.items():
            (work / name).write_text(text)
        configs = ["--reward", json.dumps(["reward.yaml", "loop_reward.yaml", reward])]
        run(work, *configs, "--policy", '["ppo.yaml", "study_policy.yaml"]', *words)
    row = json.loads(measured.read_text())
    return row["policy_before"]["val/reward/true"], row["policy"]["val/reward/true"]


def mean_difference(gains: Sequence[float]) -> str:
    """Return the mean of paired differences with its 95 % interval."""
    if len(gains) not in STUDENT:
        return f"mean paired difference {statistics.fmean(gains):+.3f} ({len(gains)} seeds)"
    half = STUDENT[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5
    return f"mean paired difference {statistics.fmean(gains):+.3f} ± {half:.3f} ({len(gains)} seeds)"


def study(folder: Path, seeds: range, labels: int) -> int:
    """Compare rounds with one round of all labels."""
    gains = []
    print("| seed | before | three rounds | one round | difference |\n| --- | --- | --- | --- | --- |")
    for seed in seeds:
        found = {}
        for rounds, each in ((ROUNDS, labels), (1, ROUNDS * labels)):
            words = ("--rounds", str(rounds), "--labels", str(each), "--seed", str(seed))
            found[rounds] = final(folder / f"{seed}-{rounds}x{each}", "study_reward.yaml", *words)
        (before, several), (_, single) = found[ROUNDS], found[1]
        gains.append(several - single)
        print(f"| {seed} | {before:.3f} | {several:.3f} | {single:.3f} | {gains[-1]:+.3f} |", flush=True)
    print(mean_difference(gains))
    return 0


def strategies(folder: Path, seeds: range) -> int:
    """Compare the policies of two strategies; the second of two rounds ranks by the reward model of the first."""
    print("| labels of a round | seed | random | disagreement | difference |\n| --- | --- | --- | --- | --- |")
    for labels in BUDGETS:
        gains = []
        for seed in seeds:
            words = ("--rounds", "2", "--labels", str(labels), "--seed", str(seed), "--strategy")
            chance, chosen = (
                final(folder / f"{seed}-{name}-{labels}", "study_heads.yaml", *words, name)[1]
                for name in ("random", "disagreement")
            )
            gains.append(chosen - chance)
            print(f"| {labels} | {seed} | {chance:.3f} | {chosen:.3f} | {gains[-1]:+.3f} |", flush=True)
        print(f"{labels} labels a round: {mean_difference(gains)}")
    return 0


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kill", "study", "strategies"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills, or the first of a study")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=64, help="of each of three rounds of the study")
    parser.add_argument("--runs", type=Path, default=Path("runs/loop"), metavar="DIR", help="of a study (%(default)s)")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.seeds)
    if options.what == "study":
        return study(options.runs.resolve(), seeds, options.labels)
    if options.what == "strategies":
        return strategies(options.runs.resolve(), seeds)
    with tempfile.TemporaryDirectory() as folder:
        return kills(Path(folder), options.kills, options.seed)


if __name__ == "__main__":
    sys.exit(main())

"""Whether soft labels help: reward models on probabilities of several noisy annotators, against models on majority labels.

usage: python benchmarks/soft_labels.py [--seeds 5] [--pairs 512] [--runs DIR]

Three of twelve annotators judge each pair of the playground's replies. They are right with a probability between 0.5 and 0.9,
so three judgements in ten are wrong. The reward model is that of `reward.yaml`, from the supervised model, in eight epochs. The
rows differ in their column `probability` alone. The table has the accuracy on the true order of 1,000 held-out pairs. `--runs`
keeps finished runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from questions import STUDENT

from rlhf_lightning.__main__ import main as command
from rlhf_lightning.functional.annotators import dawid_skene, majority
from rlhf_lightning.functional.votes import FIRST, Votes
from rlhf_lightning.playground import task

Row = dict[str, Any]
ANNOTATORS, EACH, LOWEST, HIGHEST, HELD_OUT, EPOCHS = 12, 3, 0.5, 0.9, 1000, 8


def true_pairs(count: int, seed: int, held_out: bool) -> list[Row]:
    """Return pairs of replies of different true reward, the better one as `chosen`."""
    rng, rows = random.Random(seed), list[Row]()
    prompts = task.prompts(count, seed, held_out)
    while len(rows) < count:
        prompt = prompts[len(rows) % len(prompts)]
        replies = sorted((task.make_reply(prompt, rng) for _ in range(2)), key=lambda r: task.true_reward(prompt, r))
        if task.true_reward(prompt, replies[0]) < task.true_reward(prompt, replies[1]):
            rows.append({"prompt": prompt, "chosen": replies[1], "rejected": replies[0]})
    return rows


def votes_of(count: int, seed: int) -> tuple[Votes, torch.Tensor, float]:
    """Return judgements of pairs, which response is better, and the share of judgements that are wrong."""
    generator = torch.Generator().manual_seed(seed)
    accuracies = LOWEST + (HIGHEST - LOWEST) * torch.rand(ANNOTATORS, generator=generator)
    asked = torch.stack([torch.randperm(ANNOTATORS, generator=generator)[:EACH] for _ in range(count)])
    wrong = torch.rand(count, EACH, generator=generator) >= accuracies[asked]
    truth = torch.randint(2, (count,), generator=generator)
    choices = torch.where(wrong, 1 - truth[:, None], truth[:, None])
    pairs = torch.arange(count)[:, None].expand(-1, EACH)
    votes = Votes(pairs.flatten(), asked.flatten(), choices.flatten(), torch.arange(2 * count).view(-1, 2))
    return votes, truth, float(wrong.double().mean())


def sided(pair: Row, truth: int, probability: float) -> Row:
    """Return a pair whose better response is the first or the second one, with the probability of the first one."""
    better, worse = pair["chosen"], pair["rejected"]
    first, second = (better, worse) if truth == FIRST else (worse, better)
    return {"prompt": pair["prompt"], "chosen": first, "rejected": second, "probability": probability}


def probabilities(votes: Votes) -> dict[str, torch.Tensor]:
    """Return the probability that the first response is better, by each kind of label."""
    shares, reconciled = majority(votes).probabilities, dawid_skene(votes).probabilities
    return {
        "majority": (shares > 0.5).double(),
        "share of the votes": shares,
        "Dawid-Skene, more probable side": (reconciled > 0.5).double(),
        "Dawid-Skene, probability": reconciled,
    }


def accuracy(folder: Path, rows: list[Row], held_out: Path, seed: int) -> float:
    """Train on rows, unless that is done, and return the accuracy on held-out pairs."""
    summary = folder / "summary.json"
    if not summary.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train = folder / "labels.jsonl"
        train.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["fit", "--config", "reward.yaml", "--data", "PreferenceData", "--data.train", str(train)]
        words += ["--data.validation", str(held_out), "--data.batch_size", "64", "--seed_everything", str(seed)]
        words += ["--trainer.max_epochs", str(EPOCHS), "--trainer.check_val_every_n_epoch", str(EPOCHS)]
        words += ["--trainer.val_check_interval", "1.0", "--trainer.enable_progress_bar", "false"]
        words += ["--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
        with open(folder / "log.txt", "a") as log, contextlib.redirect_stdout(log):
            status = command(words)
        if status:
            raise SystemExit(f"the run in {folder} ended with status {status}")
    found: float = json.loads(summary.read_text())["val/preference/accuracy"]["after"]
    return found


def main() -> int:
    """Measure, and print a table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    parser.add_argument("--pairs", type=int, default=512, help="that are judged (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/soft_labels"), metavar="DIR", help="(%(default)s)")
    options = parser.parse_args()
    runs: Path = options.runs.resolve() / str(options.pairs)
    runs.mkdir(parents=True, exist_ok=True)
    held_out = runs / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in true_pairs(HELD_OUT, 1, True)))
    found: dict[str, list[float]] = {}
    right: dict[str, list[float]] = {}
    noise = []
    for seed in range(options.seeds):
        pairs, (votes, truth, wrong) = true_pairs(options.pairs, seed, False), votes_of(options.pairs, seed)
        noise.append(wrong)
        for place, (name, chances) in enumerate(probabilities(votes).items()):
            rows = [sided(*each) for each in zip(pairs, truth.tolist(), chances.tolist(), strict=True)]
            found.setdefault(name, []).append(accuracy(runs / f"{seed}-{place}", rows, held_out, seed))
            right.setdefault(name, []).append(float(((chances > 0.5) == (truth == FIRST)).double().mean()))
            print(f"seed {seed}, {name}: {found[name][-1]:.3f}", file=sys.stderr, flush=True)
    print(f"{statistics.fmean(noise):.1%} of the judgements are wrong\n")
    print("| labels | right | accuracy | against the majority, 95 % interval |\n| --- | --- | --- | --- |")
    for name, values in found.items():
        cell = ""
        if name != "majority":
            gains = [value - base for value, base in zip(values, found["majority"], strict=True)]
            half = STUDENT[options.seeds] * statistics.stdev(gains) / options.seeds**0.5
            cell = f"{statistics.fmean(gains):+.3f} ± {half:.3f}"
        print(f"| {name} | {statistics.fmean(right[name]):.3f} | {statistics.fmean(values):.3f} | {cell} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

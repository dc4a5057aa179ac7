"""Annotators reconciled: recovered reliabilities, and accuracy against the majority's.

usage: python benchmarks/annotators.py [--seeds 5]

Twelve annotators judge 400 pairs, four of them each pair. Eight are right with a probability between 0.7 and 0.95; four guess.

The exit status is 1 if recovered reliabilities correlate by less than 0.9 with the true ones, or a method is not more accurate
than the majority.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from rlhf_lightning.functional.annotators import dawid_skene, majority, reconciled_by_strengths
from rlhf_lightning.functional.votes import FIRST, Votes

PAIRS, EACH, RELIABLE, GUESSING = 400, 4, 8, 4
METHODS = {"Dawid-Skene": dawid_skene, "Bradley-Terry": reconciled_by_strengths}
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262, 20: 2.093}
"""97.5 % quantiles of Student's t for so many seeds."""


def simulated(seed: int) -> tuple[Votes, torch.Tensor, torch.Tensor]:
    """Return votes, which response is better, and how often each annotator is right."""
    generator = torch.Generator().manual_seed(seed)
    accuracies = torch.cat([0.7 + 0.25 * torch.rand(RELIABLE, generator=generator), torch.full((GUESSING,), 0.5)])
    truth = torch.randint(2, (PAIRS,), generator=generator)
    asked = torch.stack([torch.randperm(len(accuracies), generator=generator)[:EACH] for _ in range(PAIRS)])
    right = torch.rand(PAIRS, EACH, generator=generator) < accuracies[asked]
    choices = torch.where(right, truth[:, None], 1 - truth[:, None])
    pairs = torch.arange(PAIRS)[:, None].expand(-1, EACH)
    votes = Votes(pairs.flatten(), asked.flatten(), choices.flatten(), torch.arange(2 * PAIRS).view(-1, 2))
    return votes, truth, accuracies


def accuracy(probabilities: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the share of pairs whose better response is found; an undecided pair counts half."""
    right = ((probabilities > 0.5) == (truth == FIRST)).double()
    return float(torch.where(probabilities == 0.5, torch.full_like(right, 0.5), right).mean())


def main() -> int:
    """Measure, and print a table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(STUDENT))
    options = parser.parse_args()
    gains: dict[str, list[float]] = {name: [] for name in METHODS}
    correlations: dict[str, list[float]] = {name: [] for name in METHODS}
    by_majority = []
    for seed in range(options.seeds):
        votes, truth, accuracies = simulated(seed)
        by_majority.append(accuracy(majority(votes).probabilities, truth))
        for name, method in METHODS.items():
            found = method(votes)
            assert found.reliabilities is not None
            pair = torch.stack([found.reliabilities, accuracies.double()])
            correlations[name].append(float(torch.corrcoef(pair)[0, 1]))
            gains[name].append(accuracy(found.probabilities, truth) - by_majority[-1])
    print("| | accuracy | above the majority's, 95 % interval | correlation of reliabilities, lowest of the seeds |")
    print("| --- | --- | --- | --- |")
    print(f"| majority | {statistics.fmean(by_majority):.3f} | | |")
    failed = False
    for name in METHODS:
        mean = statistics.fmean(gains[name])
        half = STUDENT[options.seeds] * statistics.stdev(gains[name]) / options.seeds**0.5
        lowest = min(correlations[name])
        failed |= mean - half <= 0 or lowest < 0.9
        level = statistics.fmean(by_majority) + mean
        print(f"| {name} | {level:.3f} | {mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}) | {lowest:.2f} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

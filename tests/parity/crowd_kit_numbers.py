"""Write what crowd-kit 1.4 says of some votes: `python tests/parity/crowd_kit_numbers.py`, in an environment that has it."""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
from crowdkit.aggregation import BradleyTerry, DawidSkene

TARGET = Path(__file__).parent / "crowd-kit-1.4.json"


def dawid_skene(pairs: int = 60, each: int = 4) -> dict[str, Any]:
    """Votes without ties by eight annotators, two of whom guess, and the probability of the first response."""
    generator = random.Random(0)
    rights = [0.9] * 6 + [0.5] * 2
    votes = []
    for pair in range(pairs):
        truth = generator.randrange(2)
        for annotator in sorted(generator.sample(range(8), each)):
            votes.append([pair, annotator, truth if generator.random() < rights[annotator] else 1 - truth])
    table = pandas.DataFrame(votes, columns=["task", "worker", "label"])
    found = DawidSkene(n_iter=10000, tol=1e-12).fit(table).probas_
    return {"pairs": pairs, "votes": votes, "first": found.sort_index()[0].tolist()}


def bradley_terry(models: int = 6, comparisons: int = 200) -> dict[str, Any]:
    """Comparisons of models, as winner and loser, and the scores, which sum to 1."""
    generator = random.Random(1)
    rows = []
    for _ in range(comparisons):
        one, other = generator.sample(range(models), 2)
        better = generator.random() < 1 / (1 + 2.0 ** (other - one))
        rows.append([one, other] if better else [other, one])
    table = pandas.DataFrame([{"left": a, "right": b, "label": a} for a, b in rows])
    # with a tolerance above 0 it ends after two iterations, as it compares an array with itself
    scores = BradleyTerry(n_iter=20000, tol=0.0).fit_predict(table)
    return {"comparisons": rows, "scores": [float(scores[model]) for model in range(models)]}


if __name__ == "__main__":
    numbers = {"version": version("crowd-kit"), "dawid_skene": dawid_skene(), "bradley_terry": bradley_terry()}
    TARGET.write_text(json.dumps(numbers) + "\n")

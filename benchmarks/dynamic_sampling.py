"""Dynamic sampling where three quarters of the groups are tied: true reward by optimiser steps and by responses generated.

usage: python benchmarks/dynamic_sampling.py [--seeds 0 1 2 3 4] [--runs FOLDER] [--draw]

Three of four training prompts have a reward of 0 whatever the response, so all responses to such a prompt are tied; the others
have the playground's true reward. DAPO replaces tied prompts by further ones, or trains on what there is: with as many prompts
per rollout, and with four times as many, which generates as many responses as dynamic sampling does. A run that is finished is
not run again, so the command may be stopped and repeated.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import zlib
from pathlib import Path

from learning import interval, machine, run, write

from rlhf_lightning.playground import task

PROMPTS, RESPONSES, TIED, ITERATIONS = 16, 8, 4, 20
"""Prompts per rollout; responses per prompt, those of dapo.yaml; one prompt in TIED is not tied; rollouts of four steps."""
SHARED = ["--config", "dapo.yaml", "--model.iterations", str(ITERATIONS), "--model.reward", "FunctionReward"]
SHARED += ["--model.reward.function", "dynamic_sampling.one_in_four"]
WAYS = {
    "replaced": (PROMPTS, 10),
    "trained on": (PROMPTS, 0),
    "trained on, four times as many prompts": (TIED * PROMPTS, 0),
}
"""Prompts per rollout, and DAPO's `max_refills`."""


def one_in_four(prompts: list[str], responses: list[str]) -> list[float]:
    """Return the true reward of responses to one prompt in four, chosen by a checksum of its words, and 0 for the others."""
    return [
        0.0 if zlib.crc32(prompt.strip().encode()) % TIED else task.true_reward(prompt.strip(), response.strip())
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def words(way: str) -> list[str]:
    """Return the options of a run."""
    prompts, refills = WAYS[way]
    return [*SHARED, "--data.batch_size", str(prompts), "--model.algorithm.max_refills", str(refills)]


def measured(folder: Path, way: str) -> list[dict[str, float]]:
    """Return the true reward of every validation, with the optimiser steps and the responses generated until then."""
    found, responses = [], 0.0
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row.get("reward/mean"):  # a rollout; the number of its responses is logged where prompts are replaced
                responses += float(row.get("rollout/responses") or RESPONSES * WAYS[way][0])
            if row.get("val/reward/true"):
                numbers = {"step": float(row["step"]), "responses": responses}
                found.append({**numbers, "true": float(row["val/reward/true"])})
    return found


def table(rows: list[dict]) -> str:
    """Return Markdown with the mean of the seeds and its interval, a validation per column."""
    lines = [
        "| tied prompts | optimiser steps | responses generated | true reward before | after a half | at the end |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for way in WAYS:
        seeds = sorted({row["seed"] for row in rows if row["way"] == way})
        series = [[row for row in rows if row["way"] == way and row["seed"] == seed] for seed in seeds]
        if not series:
            continue
        responses = sum(each[-1]["responses"] for each in series) / len(series)
        moments = (0, len(series[0]) // 2, -1)
        rewards = [interval([each[moment]["true"] for each in series]) for moment in moments]
        lines.append(f"| {way} | {series[0][-1]['step']:.0f} | {responses:,.0f} | " + " | ".join(rewards) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not finished, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/dynamic_sampling"))
    parser.add_argument("--draw", action="store_true", help="only make the table of the runs that there are")
    options = parser.parse_args()
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
    folders = {
        (way, seed): options.runs / str(place) / str(seed) for place, way in enumerate(WAYS) for seed in options.seeds
    }
    if not options.draw:
        for (way, seed), folder in sorted(folders.items(), key=lambda item: item[0][1]):
            run(words(way), seed, folder)
    rows = [
        {"way": way, "seed": seed, **row}
        for (way, seed), folder in folders.items()
        if (folder / "summary.json").exists()
        for row in measured(folder, way)
    ]
    with open(here / "results" / "dynamic_sampling.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["way", "seed", "step", "responses", "true"])
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    print(text)
    seeds = len({row["seed"] for row in rows})
    write("dynamic sampling", f"{text}\n\n{seeds} seeds on {machine()}; the numbers: results/dynamic_sampling.csv.")


if __name__ == "__main__":
    sys.exit(main())

"""Over-optimise a learned reward on the playground: whether callbacks notice it, and the curves of Gao et al. (2022).

    python benchmarks/over_optimization.py alarms   # five runs with each of three KL coefficients; a second reward model judges
    python benchmarks/over_optimization.py curve    # nine reward models, and a run on each: both rewards against the KL

`alarms` prints when `OverOptimization` raised its alarm, and the true reward of the model that `KeepBest` exported. The exit
status is 1 if the alarm or `KeepBest` is right on fewer than 4 of 5 runs without a KL penalty whose true reward fell by more than
0.1, or if more than one in ten of the runs with a penalty that did not fall raised an alarm. It draws
results/over_optimization-<judge>.png; `curve` writes results/over_optimization.csv and .png. A run that is finished is not run
again, so the command may be stopped and repeated; `--draw` only makes tables and plots of the runs that there are.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import rlhf_lightning
from rlhf_lightning.playground.task import ANNOTATORS, MAX_WORDS, POLITE, preferences, vocabulary

HERE = Path(__file__).parent
Metrics = dict[str, float]

ITERATIONS = 15
"""Of PPO, with 64 prompts each."""
EVALUATIONS = 5
"""Of a run of `alarms`, without the one before training."""
JUDGE_SEED = 100
"""Of the judge's pairs and weights; no policy has it."""
JUDGE_PAIRS = 6144
JUDGES = {
    "broad": "pairs of an unbiased annotator, half of them with broken text",
    "careful": "pairs of an unbiased annotator",
    "same": "other pairs of the five annotators whom the training reward has learned from; three are biased",
}
"""What teaches the judge."""
UNBIASED = ANNOTATORS[0]
COEFS = (0.0, 0.1, 0.2)
"""Of the KL penalty; ppo.yaml has 0.1, with twice as many prompts."""
FALL = 0.1
"""Of the true reward from its best to the end, above which a run was over-optimised."""
EVALUATIONS_TO_SPEAK = 2
MARGIN = 0.05
"""Of the true reward, within which an export is as good as the best evaluation."""

SIZES = {"small": (8, 1, 1), "medium": (24, 1, 2), "large": (64, 2, 4)}
"""Width, layers and attention heads of a reward model."""
LABELS = (128, 1024, 8192)
UPDATES = 128
"""Of every reward model, with 64 pairs each: one with fewer pairs sees them more often."""


def train(config: str, overlay: dict[str, Any], folder: Path, **objects: Any) -> None:
    """Run a config with an overlay in this process, unless the run is finished."""
    if is_finished(folder):
        return
    print(folder, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w") as log, redirect_stdout(log), redirect_stderr(log):
        rlhf_lightning.fit([config, overlay], folder, **objects)


def is_finished(folder: Path) -> bool:
    """Say whether a run came to its end."""
    return (folder / "summary.json").exists()


def evaluations(folder: Path) -> list[Metrics]:
    """Return the held-out metrics of every validation of a run, without `val/`, and the step."""
    frame = rlhf_lightning.Run(folder).metrics.dropna(subset="val/reward/true")
    held_out = frame[[name for name in frame if name == "step" or name.startswith("val/")]]
    return held_out.rename(columns=lambda name: name.removeprefix("val/")).to_dict("records")


# -- the alarm ---------------------------------------------------------------------------------------------------------


def policy_overlay(seed: int, coef: float, reward: Path | None, callbacks: list[Any], count: int) -> dict[str, Any]:
    """Return what a policy run changes in ppo.yaml.

    Args:
        seed: of the run and of its prompts.
        coef: KL coefficient.
        reward: run of the reward model to train on; None is the model of the file.
        callbacks: evaluations.
        count: validations, without the one before training.
    """
    model: dict[str, Any] = {"iterations": ITERATIONS, "algorithm": {"init_args": {"kl": {"coef": coef}}}}
    if reward is not None:
        model["reward"] = reward_of(reward)
    return {
        "seed_everything": seed,
        "trainer": {"val_check_interval": 1 / count, "callbacks": callbacks},
        "model": {"init_args": model},
        "data": {"init_args": {"batch_size": 64, "seed": seed, "validation_size": 512}},
    }


def broken(reply: str, rng: Random) -> str:
    """Replace and append random words, as a policy far from its reference may: of the vocabulary, or of polite phrases."""
    pool = rng.choice([vocabulary()[3:], " ".join(POLITE).split()])
    rate = rng.choice([0.1, 0.4, 0.8])
    words = [rng.choice(pool) if rng.random() < rate else word for word in reply.split()]
    return " ".join((words + rng.choices(pool, k=rng.choice([0, 0, 5, 10])))[:MAX_WORDS])


def judge_rows(kind: str, size: int, held_out: bool) -> list[dict[str, str]]:
    """Sample the pairs that teach a judge, or held-out ones."""
    rows: list[dict[str, str]] = list(preferences(8 * size, JUDGE_SEED, held_out))
    if kind == "same":
        return rows[:size]
    rows = [row for row in rows if row["annotator"] == UNBIASED.name][:size]
    if kind == "broad":
        rng = Random(JUDGE_SEED)
        for row in rows[::2]:
            prompt, first, second = row["prompt"], broken(row["chosen"], rng), row["rejected"]
            better = UNBIASED.prefers_first(prompt, first, second, rng)
            row["chosen"], row["rejected"] = (first, second) if better else (second, first)
    return rows


def train_judge(kind: str, folder: Path) -> None:
    """Train a second reward model from the supervised model."""
    if is_finished(folder):
        return
    overlay = {
        "seed_everything": JUDGE_SEED,
        "trainer": {"val_check_interval": 1.0},
        "model": {"init_args": {"lr_scheduler": {"init_args": {"total_iters": JUDGE_PAIRS // 64}}}},
        "data": {"class_path": "PreferenceData", "init_args": {"batch_size": 64}},
    }
    rows, held_out = judge_rows(kind, JUDGE_PAIRS, False), judge_rows(kind, 256, True)
    train("reward.yaml", overlay, folder, data__train=rows, data__validation=held_out)


def train_reward(seed: int, size: str, labels: int, folder: Path) -> None:
    """Train a reward model of a size from scratch, on so many pairs of all annotators."""
    width, layers, heads = SIZES[size]
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 128,
    }
    model = {"name_or_path": None, "config": config, "tokenizer": "playground/sft"}
    scheduler = {"init_args": {"total_iters": UPDATES}}
    epochs = 64 * UPDATES // labels
    overlay = {
        "seed_everything": seed,
        "trainer": {"max_epochs": epochs, "val_check_interval": 1.0, "check_val_every_n_epoch": epochs},
        "model": {"init_args": {"model": model, "lr_scheduler": scheduler}},
        "data": {"init_args": {"size": labels, "seed": seed, "validation_size": 512}},
    }
    train("reward.yaml", overlay, folder)


def reward_of(folder: Path) -> dict[str, Any]:
    """Return the reward that a run of reward.yaml has trained."""
    return {"class_path": "ModelReward", "init_args": {"name_or_path": str((folder / "export").resolve())}}


def judged_folder(runs: Path, kind: str, coef: float, seed: int) -> Path:
    """Return the folder of a policy run."""
    return runs / f"{kind}-kl-{coef}" / str(seed)


def train_judged(runs: Path, kind: str, coef: float, seed: int) -> Path:
    """Train a policy on the shipped reward model, with a second one as judge."""
    judge, folder = runs / f"judge-{kind}", judged_folder(runs, kind, coef, seed)
    train_judge(kind, judge)
    callbacks = [
        {"class_path": "OverOptimization", "init_args": {"score": "reward/judge"}},
        {"class_path": "KeepBest", "init_args": {"monitor": "val/reward/judge"}},
    ]
    overlay = policy_overlay(seed, coef, None, callbacks, EVALUATIONS)
    rewards = {"true": {"class_path": "PlaygroundReward"}, "judge": reward_of(judge)}
    overlay["model"]["init_args"]["evaluation_rewards"] = rewards
    train("ppo.yaml", overlay, folder)
    return folder


@dataclass(frozen=True)
class Outcome:
    """Hold what the callbacks made of a run; evaluations count from 0, the one before training."""

    best: float
    last: float
    alarm: int | None
    """Evaluation at which the alarm was first raised."""
    best_at: int
    exported_at: int
    kept: float
    """True reward of the model that `KeepBest` exported, at the evaluation when it did."""

    @property
    def is_over_optimized(self) -> bool:
        """The true reward fell."""
        return self.best - self.last > FALL

    @property
    def spoke_in_time(self) -> bool:
        """The alarm came within two evaluations of the best true reward."""
        return self.alarm is not None and abs(self.alarm - self.best_at) <= EVALUATIONS_TO_SPEAK

    @property
    def kept_the_best(self) -> bool:
        """The export is as good as the best evaluation."""
        return self.best - self.kept <= MARGIN


def outcome(rows: list[Metrics]) -> Outcome:
    """Judge the callbacks by the evaluations of a run."""
    true, judge = ([row[f"reward/{name}"] for row in rows] for name in ("true", "judge"))
    alarms = [place for place, row in enumerate(rows) if row["over_optimization/alarm"]]
    exported = judge.index(rows[-1]["reward/judge/best"])
    return Outcome(max(true), true[-1], alarms[0] if alarms else None, true.index(max(true)), exported, true[exported])


def alarms_table(outcomes: dict[tuple[float, int], Outcome]) -> str:
    """Return a Markdown table of all runs."""
    lines = [
        "| KL coefficient | seed | best true | last true | alarm at | best true at | exported at | exported true |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (coef, seed), each in outcomes.items():
        places = ("none" if each.alarm is None else each.alarm, each.best_at, each.exported_at)
        cells = [coef, seed, f"{each.best:.3f}", f"{each.last:.3f}", *places, f"{each.kept:.3f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def verdict(outcomes: dict[tuple[float, int], Outcome]) -> tuple[list[str], bool]:
    """Return the lines about all runs, and whether the callbacks were right often enough."""
    fell = [each for (coef, _), each in outcomes.items() if coef == 0 and each.is_over_optimized]
    spoke, kept = sum(each.spoke_in_time for each in fell), sum(each.kept_the_best for each in fell)
    lines = [
        f"no penalty: alarm within two evaluations on {spoke} of {len(fell)} seeds whose true reward falls by more than {FALL}",
        f"no penalty: KeepBest within {MARGIN} on {kept} of {len(fell)}",
    ]
    false, held = 0, 0
    for coef in COEFS[1:]:
        own = [each for (other, _), each in outcomes.items() if other == coef]
        sound = [each for each in own if not each.is_over_optimized]
        raised = sum(each.alarm is not None for each in sound)
        held, false = held + len(sound), false + raised
        others = len(own) - len(sound)
        lines.append(
            f"coefficient {coef}: {raised} false alarms in {len(sound)} runs; in {others} others the true reward fell"
        )
    enough = bool(fell) and min(spoke, kept) >= 0.8 * len(fell) and false <= 0.1 * held
    return lines, enough


def draw_alarms(runs: Path, kind: str, outcomes: dict[tuple[float, int], Outcome], path: Path) -> None:
    """Draw both learned rewards and the true one of the first five seeds against the root of the KL, a row per coefficient."""
    from matplotlib.figure import Figure

    coefs, seeds = list(dict.fromkeys(key[0] for key in outcomes)), sorted({key[1] for key in outcomes})[:5]
    figure = Figure(figsize=(2.8 * len(seeds), 2.8 * len(coefs)), layout="constrained")
    panels = figure.subplots(len(coefs), len(seeds), sharex=True, sharey=True, squeeze=False)
    for coef, seed in itertools.product(coefs, seeds):
        if (coef, seed) not in outcomes:
            continue
        panel = panels[coefs.index(coef)][seeds.index(seed)]
        rows = evaluations(judged_folder(runs, kind, coef, seed))
        x = [math.sqrt(max(0.0, row["kl/reference"] * row["response/length"])) for row in rows]
        for name, label in (("mean", "training reward"), ("judge", "judge"), ("true", "true reward")):
            panel.plot(x, [row[f"reward/{name}"] for row in rows], "o-", ms=4, label=label)
        panel.set_title(f"KL coefficient {coef}, seed {seed}", fontsize="medium")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("√KL(policy ‖ reference), nats per response")
    figure.supylabel("held-out reward")
    panels[0][0].legend(frameon=False)
    figure.savefig(path, dpi=100)


def alarms(runs: Path, kind: str, seeds: Sequence[int], draw: bool) -> int:
    """Train with every coefficient, and compare the callbacks with the true reward."""
    outcomes = {}
    for coef in COEFS:
        for seed in seeds:
            folder = judged_folder(runs, kind, coef, seed)
            if not draw:
                train_judged(runs, kind, coef, seed)
            if is_finished(folder):
                outcomes[coef, seed] = outcome(evaluations(folder))
    if outcomes:
        draw_alarms(runs, kind, outcomes, HERE / "results" / f"over_optimization-{kind}.png")
    lines, enough = verdict(outcomes)
    print(alarms_table(outcomes), *lines, sep="\n")
    return int(not enough)


# -- the curve ---------------------------------------------------------------------------------------------------------


def train_curve(runs: Path, size: str, labels: int, seed: int) -> Path:
    """Train a reward model of a size on so many labels, from scratch, and a policy on it without a KL penalty."""
    reward, folder = runs / f"reward-{size}-{labels}" / str(seed), runs / f"policy-{size}-{labels}" / str(seed)
    train_reward(seed, size, labels, reward)
    callbacks = [{"class_path": "KLFrontier"}]
    train("ppo.yaml", policy_overlay(seed, 0.0, reward, callbacks, ITERATIONS), folder)
    return folder


def accuracy(folder: Path) -> float:
    """Return the accuracy of a reward model on held-out pairs."""
    return rlhf_lightning.Run(folder).summary["val/preference/accuracy"]["after"]


def curve_rows(runs: Path) -> list[dict[str, Any]]:
    """Return one row per evaluation of every finished run."""
    found = []
    for size in SIZES:
        for labels in LABELS:
            for folder in sorted((runs / f"policy-{size}-{labels}").glob("*")):
                if not is_finished(folder):
                    continue
                right = accuracy(runs / f"reward-{size}-{labels}" / folder.name)
                for row in evaluations(folder):
                    numbers = {"kl": row["kl/response"], "training": row["reward/mean"], "true": row["reward/true"]}
                    place = {"size": size, "labels": labels, "seed": int(folder.name), "accuracy": right}
                    found.append(place | {"step": int(row["step"])} | numbers)
    return found


def curve_table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: the best true reward of every reward model, and where it ends."""
    lines = [
        "| reward model | labels | held-out accuracy | best true | at KL | last true | at KL | training, best true → last |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for size, labels, seed in dict.fromkeys((row["size"], row["labels"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["size"], row["labels"], row["seed"]) == (size, labels, seed)]
        best, last = max(own, key=lambda row: row["true"]), own[-1]
        cells = [size, labels, f"{best['accuracy']:.3f}"]
        cells += [f"{each[key]:{form}}" for each in (best, last) for key, form in (("true", ".3f"), ("kl", ".1f"))]
        lines.append("| " + " | ".join(map(str, [*cells, f"{best['training']:.2f} → {last['training']:.2f}"])) + " |")
    return "\n".join(lines)


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw both rewards against the square root of the KL divergence, a column per size, a colour per number of labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, len(SIZES), sharex=True, sharey="row")
    for column, size in enumerate(SIZES):
        for color, labels in enumerate(LABELS):
            own = [row for row in rows if (row["size"], row["labels"]) == (size, labels)]
            for seed in sorted({row["seed"] for row in own}):
                series = sorted((row for row in own if row["seed"] == seed), key=lambda row: row["step"])
                x = [math.sqrt(max(0.0, row["kl"])) for row in series]
                for panel, key in zip(panels[:, column], ("training", "true"), strict=True):
                    panel.plot(x, [row[key] for row in series], "o-", ms=3, color=f"C{color}", label=f"{labels} pairs")
        panels[0, column].set_title(f"{size} reward model ({SIZES[size][0]} wide)")
        panels[1, column].set_xlabel("√KL(policy ‖ reference), nats per response")
    panels[0, 0].set_ylabel("training reward, held out")
    panels[1, 0].set_ylabel("true reward, held out (best 1)")
    for panel in panels.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[1, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def curve(runs: Path, seeds: Sequence[int], draw: bool) -> int:
    """Train nine reward models and a policy on each, and draw both rewards against the KL."""
    for seed in () if draw else seeds:
        for labels in LABELS:
            for size in SIZES:
                train_curve(runs, size, labels, seed)
    rows = curve_rows(runs)
    with open(HERE / "results" / "over_optimization.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    draw_curve(rows, HERE / "results" / "over_optimization.png")
    print(curve_table(rows))
    return 0


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("alarms", "curve"))
    parser.add_argument("--seeds", type=int, nargs="+", help="0 to 4 for alarms, 0 for curve")
    parser.add_argument("--runs", type=Path, default=Path("runs/over_optimization"))
    parser.add_argument("--judge", choices=JUDGES, default="broad", help="what teaches the judge of alarms (broad)")
    parser.add_argument("--draw", action="store_true", help="train nothing")
    options = parser.parse_args()
    if options.study == "alarms":
        return alarms(options.runs, options.judge, options.seeds or range(5), options.draw)
    return curve(options.runs, options.seeds or [0], options.draw)


if __name__ == "__main__":
    sys.exit(main())

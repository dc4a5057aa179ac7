"""What every algorithm learns on the playground, and what each knob does to it: table, plot and numbers in benchmarks/.

usage: python benchmarks/learning.py [learning|algorithms|ablations] [--seeds 0 1 2 3 4] [--runs FOLDER] [--only NAME …] [--draw]
       python benchmarks/learning.py peers --peers DIR     ours and TRL's at equal budget, in environments of `speed.py peers`

A run that is finished is not run again, so the command may be stopped and repeated. `--only` takes some of the rows, by their
names. `--draw` only makes tables and plots of the runs that there are. A run counts as learned when it covers at least a quarter
of the way from its start to the best.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PPO, GRPO, REINFORCE = (["--config", name] for name in ("ppo.yaml", "grpo.yaml", "reinforce.yaml"))
LEARNING = {
    "PPO": PPO,
    "REINFORCE, leave one out": REINFORCE,
    "GRPO": GRPO,
    "DPO, online": ["--config", "dpo.yaml"],
    "DPO, offline": ["--config", "dpo_offline.yaml"],
    "REINFORCE, batch": [*REINFORCE, "--model.algorithm.baseline", "batch"],
    "REINFORCE, moving": [*REINFORCE, "--model.algorithm.baseline", "moving"],
    "REINFORCE, none": [*REINFORCE, "--model.algorithm.baseline", "none"],
    "PPO file, algorithm DPO": [*PPO, "--model.algorithm", "DPO"],
    "PPO file, algorithm REINFORCE": [*PPO, "--model.algorithm", "REINFORCE"],
}
LR = "--model.optimizer.init_args.lr"
ABLATIONS = {
    "PPO as shipped": PPO,
    "PPO, KL coefficient 0 (0.1)": [*PPO, "--model.algorithm.kl.coef", "0"],
    "PPO, KL coefficient 0.4 (0.1)": [*PPO, "--model.algorithm.kl.coef", "0.4"],
    "PPO, learning rate 1e-4 (3e-4)": [*PPO, LR, "1e-4"],
    "PPO, learning rate 1e-3 (3e-4)": [*PPO, LR, "1e-3"],
    "PPO, learning rate 3e-3 (3e-4)": [*PPO, LR, "3e-3"],
    "PPO, epochs 1 (2)": [*PPO, "--model.algorithm.epochs", "1"],
    "PPO, epochs 6 (2)": [*PPO, "--model.algorithm.epochs", "6"],
    "PPO, clip range 0.05 (0.2)": [*PPO, "--model.algorithm.clip_range", "0.05"],
    "PPO, clip range 1.0 (0.2)": [*PPO, "--model.algorithm.clip_range", "1.0"],
    "PPO, reference int8 (nf4)": [*PPO, "--model.reference", "int8"],
    "PPO, reference full (nf4)": [*PPO, "--model.reference", "full"],
    "GRPO as shipped": GRPO,
    "GRPO, 2 responses a prompt (8)": [
        *GRPO,
        "--model.algorithm.responses_per_prompt",
        "2",
        "--data.batch_size",
        "256",
    ],
    "GRPO, 32 responses a prompt (8)": [
        *GRPO,
        "--model.algorithm.responses_per_prompt",
        "32",
        "--data.batch_size",
        "16",
    ],
}
SWAPPED = {
    "GSPO": 8,
    "CISPO": 16,
    "RLOO": 2,
    "REINFORCEPlusPlus": 1,
    "REINFORCEPlusPlusBaseline": 8,
    "ReMax": 1,
    "RAFT": 8,
}
"""Responses per prompt, the default of each."""
TEACHER = ["--model.reward", "null", "--model.reference.name_or_path", "RUNS/PPO/SEED/export"]
ALGORITHMS = {
    "PPO": PPO,
    **{
        name: [*GRPO, "--model.algorithm", name, "--data.batch_size", str(128 // responses)]
        for name, responses in SWAPPED.items()
    },
    "DAPO": ["--config", "dapo.yaml", "--data.batch_size", "16"],
    "GDPO": ["--config", "gdpo.yaml", "--data.batch_size", "16"],
    "Distillation of PPO": [*PPO, "--model.algorithm", "Distillation", *TEACHER],
    "KTO": ["--config", "kto.yaml"],
    **{
        f"{name}, offline": ["--config", "dpo_offline.yaml", "--model.algorithm", name, "--model.reference", "none"]
        for name in ("ORPO", "SimPO")
    },
}
"""PPO, and the algorithms that `LEARNING` does not have. An online one has 128 responses per rollout, as `ppo.yaml` has.

The teacher of `Distillation` is the policy of the PPO run of the same seed; `RUNS` and `SEED` are filled in.
"""
STUDIES = {"learning": LEARNING, "algorithms": ALGORITHMS, "ablations": ABLATIONS}
PEERS: dict[str, dict] = {
    "GRPO": {"config": "grpo.yaml", "prompts": 64, "responses": 8, "beta": 0.15, "options": {"loss_type": "grpo"}},
    "RLOO": {"config": "reinforce.yaml", "prompts": 64, "responses": 4, "beta": 0.05, "options": {}},
    "DPO": {"config": "dpo.yaml", "prompts": 128, "responses": 2, "beta": 0.1, "options": {}},
    "PPO": {
        "config": "ppo.yaml",
        "prompts": 128,
        "responses": 1,
        "beta": 0.1,
        "epochs": 2,
        "minibatches": 4,
        "options": {},
    },
}
"""The work of each kind: prompts per rollout, responses per prompt, KL coefficient, TRL's further options; 40 rollouts."""
OURS = {
    "GRPO": GRPO,
    "RLOO": [*REINFORCE, "--model.algorithm", "RLOO", "--model.algorithm.responses_per_prompt", "4"],
    "DPO": ["--config", "dpo.yaml"],
    "PPO": [*PPO, "--model.critic", "separate"],
}
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % point of Student's t for the mean of so many numbers."""


def folder_of(runs: Path, name: str, seed: int) -> Path:
    return runs / name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "") / str(seed)


def run(words: list[str], seed: int, folder: Path) -> None:
    if (folder / "summary.json").exists():
        return
    command = [sys.executable, "-m", "rlhf_lightning", "fit", *words, "--seed_everything", str(seed)]
    print(f"{folder}", flush=True)
    subprocess.run([*command, "--trainer.default_root_dir", str(folder)], check=True, stdout=subprocess.DEVNULL)


def run_peer(kind: str, seed: int, folder: Path, peers: Path) -> None:
    """Train with TRL, in an environment of its own."""
    if (folder / "export").exists():
        return
    work = PEERS[kind]
    steps = 40 * work.get("epochs", 1) * work.get("minibatches", 1)
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    options = {"trainer": kind, "seed": seed, "folder": str(folder.resolve()), "lr": 3e-4, "length": 24, "steps": steps}
    job.write_text(json.dumps({**work, **options}))
    python = peers.absolute() / ("trl-1.12" if kind == "PPO" else "trl-1.16") / "bin" / "python"
    print(f"{folder}", flush=True)
    command = [str(python), "-m", "peers.learn", str(job.resolve())]
    subprocess.run(command, check=True, cwd=HERE, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def judged(folder: Path) -> dict[str, float]:
    """Measure an export with one evaluator: true reward and KL to the supervised model of 512 held-out responses."""
    place = folder / "judged"
    if not (place / "metrics.csv").exists():
        words = [
            "--config",
            "ppo.yaml",
            "--model.policy.name_or_path",
            str(folder / "export"),
            "--data.batch_size",
            "128",
        ]
        words += [
            "--model.reference.name_or_path",
            "playground/sft",
            "--data.validation_size",
            "512",
            "--data.size",
            "16",
        ]
        command = [sys.executable, "-m", "rlhf_lightning", "validate", *words, "--trainer.default_root_dir", str(place)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(place / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    return {name: float(row[f"val/{key}"]) for name, key in (("true", "reward/true"), ("kl", "kl/reference"))}


def peers_table(runs: Path, names: list[str]) -> tuple[str, list[dict]]:
    """Markdown of true reward and KL, ours beside TRL's, and the difference of seeds with its interval; and the numbers."""
    rows, lines = [], ["| kind | ours | KL | TRL | KL | ours - TRL |", "| --- | --- | --- | --- | --- | --- |"]
    for kind in names:
        found: dict[str, dict[int, dict[str, float]]] = {"ours": {}, "trl": {}}
        for side, seeds in found.items():
            for folder in sorted((runs / f"{side}-{kind}").glob("*")):
                if (folder / "export").exists():
                    seeds[int(folder.name)] = judged(folder)
                    rows.append({"kind": kind, "side": side, "seed": int(folder.name), **seeds[int(folder.name)]})
        both = sorted(found["ours"].keys() & found["trl"].keys())
        if not both:
            continue
        cells = [kind]
        for side in found:
            cells.append(interval([found[side][seed]["true"] for seed in both]))
            cells.append(f"{statistics.mean(found[side][seed]['kl'] for seed in both):.2f}")
        cells.append(interval([found["ours"][seed]["true"] - found["trl"][seed]["true"] for seed in both]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines), rows


def compare(options: argparse.Namespace, seeds: list[int]) -> None:
    """Run ours and TRL's at equal budget, and write the table."""
    names = [name for name in PEERS if not options.only or name in options.only]
    runs = options.runs / "peers"
    for seed in () if options.draw else seeds:
        for kind in names:
            run(OURS[kind], seed, runs / f"ours-{kind}" / str(seed))
            run_peer(kind, seed, runs / f"trl-{kind}" / str(seed), options.peers)
    text, rows = peers_table(runs, names)
    with open(HERE / "results" / "peers.csv", "w", newline="") as file:
        table_file = csv.DictWriter(file, ["kind", "side", "seed", "true", "kl"])
        table_file.writeheader()
        table_file.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    print(text)
    write("peers", f"{text}\n\nOn {machine()}, one thread a run; the numbers: results/peers.csv.")


def validations(folder: Path) -> list[dict[str, float]]:
    """One row a validation: step, seconds of rollouts and updates and peak memory so far, true and learned reward, KL."""
    found, seconds, memory = [], 0.0, 0.0
    with open(folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            seconds += sum(float(row.get(name) or 0) for name in ("time/generate", "time/score", "time/update"))
            memory = max(memory, float(row.get("memory/peak") or 0))
            if row.get("val/reward/true"):
                kl = row.get("val/kl/reference") or ("0" if not found else "nan")
                numbers = {"true": row["val/reward/true"], "mean": row.get("val/reward/mean") or "nan", "kl": kl}
                measured = {name: float(x) for name, x in numbers.items()}
                found.append({"step": int(row["step"]), "seconds": seconds, "memory": memory, **measured})
    return found


def collect(study: str, runs: Path) -> list[dict]:
    return [
        {"run": name, "seed": int(folder.name), **row}
        for name in STUDIES[study]
        for folder in sorted(folder_of(runs, name, 0).parent.glob("*"))
        if (folder / "summary.json").exists()
        for row in validations(folder)
    ]


def interval(values: list[float]) -> str:
    """The mean and its 95 % interval; of fewer than three numbers the mean and the numbers."""
    mean = statistics.mean(values)
    if len(values) < 3:
        return f"{mean:.3f} ({', '.join(f'{value:.3f}' for value in values)})"
    return f"{mean:.3f} ± {STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5:.3f}"


def table(study: str, rows: list[dict]) -> str:
    """Markdown: start, end, seeds above the start, way to the best, KL, learned reward, seconds of the fastest seed, memory."""
    names = (
        "run | before | after | above the start | way to the best | KL, nats a token | learned reward | seconds | GiB"
    )
    lines = [f"| {names} |", "| --- " * (names.count("|") + 1) + "|"]
    for name in STUDIES[study]:
        seeds = sorted({row["seed"] for row in rows if row["run"] == name})
        series = [[row for row in rows if row["run"] == name and row["seed"] == seed] for seed in seeds]
        if not series:
            continue
        before, after = [s[0]["true"] for s in series], [s[-1]["true"] for s in series]
        way = statistics.mean((a - b) / (1 - b) for a, b in zip(after, before, strict=True))
        cells = [
            name,
            f"{statistics.mean(before):.3f}",
            interval(after),
            f"{sum(a > b for a, b in zip(after, before, strict=True))} of {len(seeds)}",
            f"{way:.0%}",
            *(f"{statistics.mean(s[-1][key] for s in series):.2f}".replace("nan", "") for key in ("kl", "mean")),
            f"{min(s[-1]['seconds'] for s in series):.0f}",
            f"{statistics.mean(s[-1]['memory'] for s in series):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """True reward against KL and against seconds: the mean of the seeds, and their range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = [figure.add_subplot(1, 2, place) for place in (1, 2)]
    for color, name in enumerate(LEARNING):
        seeds = sorted({row["seed"] for row in rows if row["run"] == name})
        series = [[row for row in rows if row["run"] == name and row["seed"] == seed] for seed in seeds]
        if not series:
            continue
        at = list(zip(*series, strict=False))
        mean, low, high = ([f([r["true"] for r in group]) for group in at] for f in (statistics.mean, min, max))
        for panel, key in zip(panels, ("kl", "seconds"), strict=True):
            typical = statistics.mean if key == "kl" else min  # what else the machine does only ever adds seconds
            x = [typical(r[key] for r in group) for group in at]
            style = {"color": f"C{color}", "ls": "--" if name.startswith("PPO file") else "-"}
            panel.plot(x, mean, "o", ms=3, **{**style, "ls": style["ls"]}, label=name)
            panel.fill_between(x, low, high, alpha=0.1, color=style["color"], lw=0)
    for panel, label in zip(
        panels, ("KL to the reference, nats a token", "seconds of rollouts and updates"), strict=True
    ):
        panel.set_xlabel(label)
        panel.set_ylabel("held-out true reward (best 1)")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def machine() -> str:
    import torch

    names = [
        x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")
    ]
    return f"{os.cpu_count()} cores ({names[0] if names else platform.machine()}), torch {torch.__version__}"


def write(study: str, text: str) -> None:
    """Between the markers of benchmarks/README.md."""
    page = HERE / "README.md"
    whole, begin, end = page.read_text(), f"<!-- {study} -->\n", f"<!-- end of {study} -->"
    head, rest = whole.split(begin)
    page.write_text(head + begin + text + "\n" + end + rest.split(end, 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=[*STUDIES, "peers"], default="learning")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows of the study")
    parser.add_argument("--peers", type=Path, default=Path("runs/peers"), help="the folder that `speed.py peers` made")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    seeds = options.seeds or ([0, 1] if options.study == "ablations" else [0, 1, 2, 3, 4])
    if options.study == "peers":
        compare(options, seeds)
        return
    for seed in () if options.draw else seeds:
        for name, words in STUDIES[options.study].items():
            if options.only and name not in options.only:
                continue
            words = [word.replace("RUNS", str(options.runs)).replace("SEED", str(seed)) for word in words]
            run(words, seed, folder_of(options.runs, name, seed))
    rows = collect(options.study, options.runs)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with open(results / f"{options.study}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["run", "seed", "step", "seconds", "memory", "true", "mean", "kl"])
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    text = table(options.study, rows)
    print(text)
    write(options.study, f"{text}\n\nOn {machine()}, one thread a run; the numbers: results/{options.study}.csv.")
    if options.study == "learning":
        draw(rows, results / "learning.png")


if __name__ == "__main__":
    main()

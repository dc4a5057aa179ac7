"""Folders of runs as training leaves them, made in milliseconds."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import yaml

ATTACK = (
    "<script>window.attacked = 1</script> </script><img src=x onerror='window.attacked = 2'> "
    "{{ 7 * 7 }} <svg onload=window.attacked=3> &lt;b&gt;"
)
PROMPTS = [f"Question {number}?" for number in range(20)]


def config(algorithm: str = "PPO", seed: int = 0, **options: Any) -> dict[str, Any]:
    kind = {"class_path": f"rlhf_lightning.{algorithm}", "init_args": {"epochs": 2, **options}}
    if algorithm == "PPO":
        kind["init_args"]["clip_range"] = 0.2
    return {
        "seed_everything": seed,
        "trainer": {"default_root_dir": f"runs/{algorithm}-{seed}", "callbacks": [{"class_path": "my.Callback"}]},
        "model": {"class_path": "rlhf_lightning.PolicyStage", "init_args": {"algorithm": kind}},
        "data": {"class_path": "PromptData", "init_args": {"train": "prompts.jsonl"}},
    }


def write_run(
    folder: Path,
    settings: dict[str, Any],
    samples: list[dict[str, Any]],
    metrics: list[dict[str, float]],
    ended: bool = True,
) -> Path:
    (folder / "tables").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    names = list(dict.fromkeys(name for row in metrics for name in row))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(metrics)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    held_out = [name for name in names if name.startswith("val/")]
    ends = {name: [row[name] for row in metrics if name in row] for name in held_out}
    if ended:
        summary = {name: {"before": values[0], "after": values[-1]} for name, values in ends.items()}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def metrics_of(seed: int = 0, steps: int = 40, **constant: float) -> list[dict[str, float]]:
    rows = []
    for step in range(0, steps + 1):
        row: dict[str, float] = {"step": step}
        if step:
            row |= {
                "reward/mean": step / 40 + 0.1 * seed,
                "kl/reference": 0.01 * step,
                "policy/entropy": 1 - step / 100,
            }
            row |= {
                "time/generate": 2.0,
                "time/score": 0.5,
                "time/update": 1.5,
                "memory/peak": 0.5 + step / 100,
                **constant,
            }
        if step % 10 == 0:
            row |= {"val/reward/mean": step / 40 + 0.1 * seed, "val/reward/true": math.sin(step / 20)}
            row |= {"val/kl/reference": 0.01 * step, "val/response/length": 20.0}
        rows.append(row)
    return rows


def sample(step: int, prompt: str, response: str, reward: float | None, true: float | None = 0.5) -> dict[str, Any]:
    return {"step": step, "prompt": prompt, "response": response, "reward": reward, "reward/true": true}


def nine_runs(folder: Path, metrics: Any = metrics_of) -> list[Path]:
    """Three algorithms with three seeds each; one reply is an attack, and each run has its tables."""
    found = []
    for algorithm in ("PPO", "DPO", "GRPO"):
        for seed in range(3):
            samples = [
                sample(
                    step,
                    prompt,
                    f"{algorithm} {seed} replies {place} at {step}.",
                    place / 20 + step / 100 * (place % 3 - 1),
                )
                for step in (0, 40)
                for place, prompt in enumerate(PROMPTS)
            ]
            samples += [sample(step, ATTACK, f"{ATTACK} {step}", 9.0) for step in (0, 40)]
            path = write_run(folder / f"{algorithm}-{seed}", config(algorithm, seed), samples, metrics(seed))
            tokens = [
                {
                    "step": 40,
                    "sample": 0,
                    "token": word,
                    "log_ratio": 0.1 * place - 0.2,
                    "leave_one_out": None,
                    "logprob": -1.0,
                }
                for place, word in enumerate(["Hello", " <b>world</b>", ATTACK])
            ]
            (path / "tables" / "policy_tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tokens))
            points = [
                {"step": step, "kl": step / 5 + seed, "sqrt_kl": 1.0, "reward/mean": step / 40} for step in (0, 10, 40)
            ]
            (path / "tables" / "kl_frontier.jsonl").write_text("".join(json.dumps(row) + "\n" for row in points))
            found.append(path)
    return found

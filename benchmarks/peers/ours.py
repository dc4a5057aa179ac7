"""Our side of one measurement: the command line of the library on a config as a user writes one.

Off are validation, checkpoints and the progress bar, as on the other side; metrics are computed and written, and every other
callback is as it is by default.
"""

from __future__ import annotations

import csv
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
import transformers.models.llama.modeling_llama  # so that it counts to the libraries, not to the work
import yaml
from lightning.pytorch import Callback

import rlhf_lightning
import rlhf_lightning.cli.lightning
from peers.clock import Clock
from peers.models import reward_folder
from peers.work import ONLINE, REAL, Job
from rlhf_lightning.__main__ import main as command

CLOCK = Clock()
"""One a process: the trainer makes its callbacks from the config, so they meet it here."""
VERSIONS = {
    "torch": torch.__version__,
    "lightning": lightning.__version__,
    "transformers": transformers.__version__,
    "rlhf_lightning": rlhf_lightning.__version__,
}


class Watch(Callback):
    """Ends an update on the clock, after `parts` batches of Lightning's."""

    def __init__(self, parts: int) -> None:
        self.parts, self.batches, self.started = parts, 0, CLOCK.now()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = CLOCK.now()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        wall, cpu = (now - then for now, then in zip(CLOCK.now(), self.started, strict=True))
        CLOCK.before = wall, cpu

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.batches += 1
        if self.batches % self.parts == 0:
            CLOCK.end_update()


def algorithm(job: Job) -> dict[str, Any]:
    responses = {"responses_per_prompt": job.work.responses}
    kl = {"kl": {"coef": 0.05}}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "ppo": ("PPO", {**responses, **kl, "epochs": job.work.epochs, "minibatches": 1}),
        "rloo": ("REINFORCE", {**responses, **kl, "baseline": "leave_one_out"}),
        "grpo": ("GRPO", {**responses, **kl}),
        "online-dpo": ("DPO", responses),
        "dpo": ("DPO", {}),
    }
    name, arguments = kinds[job.work.kind.removesuffix("-separate")]
    return {"class_path": name, "init_args": arguments}


def model(job: Job, folder: Path) -> dict[str, Any]:
    """The stage."""
    policy = folder / job.size
    dtype = "bfloat16" if job.precision == "bf16-true" else "float32"
    weights: dict[str, Any] = {"name_or_path": str(policy), "dtype": dtype}
    if job.micro_batches:
        weights["max_tokens_per_batch"] = job.work.tokens // job.micro_batches
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5, "weight_decay": 0.0}}
    if job.work.kind in REAL:
        stage = {"sft": "SupervisedStage", "reward": "RewardStage"}[job.work.kind]
        return {"class_path": stage, "init_args": {"model": weights, "max_length": 512, "optimizer": optimizer}}
    arguments: dict[str, Any] = {"policy": weights, "algorithm": algorithm(job), "optimizer": optimizer}
    if job.work.kind in ONLINE:
        arguments |= {
            "reference": "full",
            "reward": _reward(job, policy, dtype),
            "generation": {"class_path": "Sampler", "init_args": {"max_new_tokens": job.work.length}},
            "iterations": job.total,
        }
    if job.work.kind == "ppo-separate":
        arguments["critic"] = "separate"
    return {"class_path": "PolicyStage", "init_args": arguments}


def _reward(job: Job, policy: Path, dtype: str) -> dict[str, Any]:
    if job.work.kind.startswith("ppo") and job.scored_by == "model":
        scorer = {"name_or_path": str(reward_folder(policy)), "dtype": dtype}
        return {"class_path": "ModelReward", "init_args": scorer}
    return {"class_path": "FunctionReward", "init_args": {"function": "peers.letter_reward.letter_reward"}}


def config(job: Job, folder: Path, data: Path, run: Path) -> dict[str, Any]:
    kinds = {"dpo": "PreferenceData", "reward": "PreferenceData", "sft": "InstructionData"}
    rows = {"train": str(data), "validation_fraction": 0.0, "batch_size": job.work.batch}
    watch = {"class_path": "peers.ours.Watch", "init_args": {"parts": job.work.epochs}}
    return {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "cpu",
            "precision": {"float32": "32-true"}.get(job.precision, job.precision),
            "gradient_clip_val": 1.0,
            "max_epochs": 2 if job.work.kind in REAL else 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "callbacks": [watch],
        },
        "model": model(job, folder),
        "data": {"class_path": kinds.get(job.work.kind, "PromptData"), "init_args": rows},
    }


def read_phases(run: Path, job: Job) -> None:
    """What the run itself measured, into the clock: generation, scoring, and what stands between them and the updates."""
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("time/generate")]
    walls = [after[0] - before[0] for before, after in pairwise(CLOCK.ends)]
    for phases, row, wall in zip(CLOCK.phases[1:], rows[1:], walls, strict=True):
        spent = {name: float(row[f"time/{name}"]) for name in ("generate", "score", "update")}
        phases |= {**spent, "reference": max(0.0, wall - sum(spent.values()))}
    lengths = {float(row["response/length"]) for row in rows}
    assert lengths == {job.work.length}, f"responses of {lengths} tokens instead of {job.work.length}"


def measure(job: Job, folder: Path, data: Path, rows: list[dict[str, str]]) -> tuple[Clock, dict[str, str]]:
    with tempfile.TemporaryDirectory() as temporary:
        run, given = Path(temporary) / "run", Path(temporary) / "config.yaml"
        given.write_text(yaml.safe_dump(config(job, folder, data, run)))
        status = command(["fit", "--config", str(given)])
        assert status == 0, f"the run ended with status {status}"
        if job.work.kind in ONLINE:
            read_phases(run, job)
    # recorded pairs are read once by the reference, before the first step; for all else what is prepared is what is loaded
    share = job.total if job.work.kind == "dpo" else float("inf")
    CLOCK.before = CLOCK.before[0] / share, CLOCK.before[1] / share
    return CLOCK, VERSIONS

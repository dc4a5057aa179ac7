"""TRL's side of one measurement: the trainer of the kind of work, set to what ours is set to.

PPO needs TRL 1.12, the last with it; all else is of 1.16. Off are logging, saving, evaluation, the progress bar and gradient
checkpointing. Everything else is TRL's default, but for what makes the work equal.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models.llama.modeling_llama  # so that it counts to the libraries, not to the work
import trl
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from peers.clock import Clock
from peers.letter_reward import letter_reward
from peers.work import ONLINE, PEER, PPO_PEER, Job

disable_progress_bars()
if trl.__version__.startswith(PPO_PEER):
    from trl.experimental.ppo import PPOConfig, PPOTrainer
else:
    assert trl.__version__.startswith(PEER), f"TRL {trl.__version__} is neither {PPO_PEER} nor {PEER}"
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        GRPOTrainer,
        RewardConfig,
        RewardTrainer,
        RLOOConfig,
        RLOOTrainer,
        SFTConfig,
        SFTTrainer,
    )
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

CLOCK = Clock()
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}


class Watch(TrainerCallback):
    """Ends an update on the clock."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        CLOCK.end_update()


def scored(completions: list[str], **kwargs: Any) -> list[float]:
    with CLOCK.timed("score"):
        return letter_reward(completions)


class Side:
    """Everything that the trainers are made of."""

    def __init__(self, job: Job, folder: Path, rows: list[dict[str, str]], out: str) -> None:
        self.job, self.rows, self.passes = job, rows, max(1, job.micro_batches)
        self.policy, self.reward = str(folder / job.size), str(folder / f"{job.size}-reward")
        self.tokenizer = AutoTokenizer.from_pretrained(self.policy)
        self.dtype = torch.bfloat16 if job.precision == "bf16-true" else torch.float32
        self.common: dict[str, Any] = {
            "output_dir": out,
            "report_to": [],
            "logging_strategy": "no",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": job.precision == "bf16-mixed",
            "gradient_checkpointing": False,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "disable_tqdm": True,
            "seed": 0,
            "max_grad_norm": 1.0,
            "gradient_accumulation_steps": self.passes,
        }
        self.loading = {"model_init_kwargs": {"dtype": str(self.dtype).removeprefix("torch.")}}
        self.given = {
            "processing_class": self.tokenizer,
            "train_dataset": Dataset.from_list(rows),
            "callbacks": [Watch()],
        }

    def language_model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.policy, dtype=self.dtype)

    def scorer(self) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(self.reward, num_labels=1, dtype=self.dtype)

    def ppo(self) -> Any:
        work = self.job.work
        config = PPOConfig(
            per_device_train_batch_size=work.batch // self.passes,
            num_mini_batches=1,
            total_episodes=work.batch * self.job.total,
            response_length=work.length,
            num_ppo_epochs=work.epochs,
            local_rollout_forward_batch_size=work.batch,
            num_sample_generations=0,
            temperature=1.0,
            kl_coef=0.05,
            **self.common,
        )
        tokens = [{"input_ids": self.tokenizer(row["prompt"])["input_ids"]} for row in self.rows]
        self.given |= {"train_dataset": Dataset.from_list(tokens), "eval_dataset": Dataset.from_list(tokens[:1])}
        models = {"model": self.language_model(), "ref_model": self.language_model()}
        return PPOTrainer(args=config, reward_model=self.scorer(), value_model=self.scorer(), **models, **self.given)

    def groups(self, config: Any, trainer: Any) -> Any:
        work = self.job.work
        options = config(
            per_device_train_batch_size=work.rows // self.passes,
            num_generations=work.responses,
            max_completion_length=work.length,
            max_steps=self.job.total,
            beta=0.05,
            temperature=1.0,
            **self.loading,
            **self.common,
        )
        return trainer(model=self.policy, reward_funcs=scored, args=options, **self.given)

    def online_dpo(self) -> Any:
        work = self.job.work
        options = OnlineDPOConfig(
            per_device_train_batch_size=work.batch // self.passes,
            max_new_tokens=work.length,
            max_length=work.prompt + work.length,
            max_steps=self.job.total,
            temperature=1.0,
            top_k=0,
            **self.common,
        )
        models = {"model": self.language_model(), "ref_model": self.language_model()}
        return OnlineDPOTrainer(reward_funcs=scored, args=options, **models, **self.given)

    def recorded(self, config: Any, trainer: Any, model: str) -> Any:
        """DPO, the reward model, SFT."""
        options = config(
            per_device_train_batch_size=self.job.work.batch // self.passes,
            max_steps=self.job.total,
            max_length=None,
            **self.loading,
            **self.common,
        )
        return trainer(model=model, args=options, **self.given)

    def trainer(self) -> Any:
        kind = self.job.work.kind
        if kind in ("rloo", "grpo"):
            return self.groups(*{"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[kind])
        if kind == "ppo":
            return self.ppo()
        if kind == "online-dpo":
            return self.online_dpo()
        if kind == "reward":
            return self.recorded(RewardConfig, RewardTrainer, self.reward)
        kinds = {"dpo": (DPOConfig, DPOTrainer), "sft": (SFTConfig, SFTTrainer)}
        return self.recorded(*kinds[kind], self.policy)


def watch_phases(trainer: Any, job: Job) -> None:
    """Count generation, the reference, the reward model and the critic's pass over a rollout to their phases."""
    if job.work.kind in ONLINE:
        _watch_generation(getattr(trainer.model, "policy", trainer.model), job)
    if getattr(trainer, "ref_model", None) is not None:
        time_passes(trainer.ref_model, "reference")
    if job.work.kind == "ppo":
        time_passes(trainer.reward_model.base_model, "score")
        time_passes(trainer.value_model.base_model, "reference")


def _watch_generation(policy: Any, job: Job) -> None:
    generate = policy.generate

    def checked(*args: Any, **kwargs: Any) -> Any:
        with CLOCK.timed("generate"):
            generated = generate(*args, **kwargs)
        tokens = getattr(generated, "sequences", generated)
        assert tokens.shape[1] == job.work.prompt + job.work.length, f"{tuple(tokens.shape)} tokens were written"
        return generated

    policy.generate = checked


def time_passes(module: Any, phase: str) -> None:
    """Count the seconds of a module's passes without gradient."""
    running: list[Any] = []

    def before(*args: Any) -> None:
        if not torch.is_grad_enabled():
            running.append(CLOCK.timed(phase))
            running[-1].__enter__()

    def after(*args: Any) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def measure(job: Job, folder: Path, data: Path, rows: list[dict[str, str]]) -> tuple[Clock, dict[str, str]]:
    with tempfile.TemporaryDirectory() as out:
        trainer = Side(job, folder, rows, out).trainer()
        watch_phases(trainer, job)
        trainer.train()
    return CLOCK, VERSIONS

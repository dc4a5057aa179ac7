"""TRL's side of `learning.py peers`: one of its trainers on the playground, with the budget of one of our configs.

usage: python -m peers.learn JOB.json      in benchmarks/, by the Python of an environment of `speed.py peers`

PPO needs TRL 1.12, the last with it; all else is of 1.16. The start, the prompts, the reward model, the number of responses and
of optimiser steps, the optimiser and its learning rate, gradient clipping, temperature, length and KL coefficient are ours.
Everything else is TRL's default.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

disable_progress_bars()
ROOT = Path(__file__).resolve().parents[2]
PLAYGROUND = ROOT / "rlhf_lightning" / "playground"


def training_prompts(size: int = 2048, seed: int = 0) -> list[str]:
    """The prompts of `PlaygroundPrompts`, whatever the seed of a run; from the module alone, as the package needs more."""
    spec = importlib.util.spec_from_file_location("task", PLAYGROUND / "task.py")
    assert spec is not None
    assert spec.loader is not None
    task = importlib.util.module_from_spec(spec)
    sys.modules["task"] = task
    spec.loader.exec_module(task)
    return task.prompts(size, seed, False)


class Scorer:
    """The playground's reward model on texts, as `ModelReward` scores them."""

    __name__ = "playground"

    def __init__(self, length: int) -> None:
        self.length = length
        self.tokenizer = AutoTokenizer.from_pretrained(PLAYGROUND / "reward")
        self.model = AutoModelForSequenceClassification.from_pretrained(PLAYGROUND / "reward", num_labels=1).eval()

    @torch.no_grad()
    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        """Score responses; one that was truncated at `length` tokens has no stop token."""
        scores = []
        for prompt, response in zip(prompts, completions, strict=True):
            ids = self.tokenizer(response)["input_ids"]
            ended = [] if len(ids) >= self.length else [self.tokenizer.eos_token_id]
            tokens = torch.tensor([self.tokenizer(prompt)["input_ids"] + ids + ended])
            states = self.model.model(tokens).last_hidden_state[:, -1]
            scores.append(float(self.model.score(states)))
        config = self.model.config
        return [(score - config.score_mean) / config.score_std for score in scores]


def normalised_model() -> Any:
    """The reward model with its normalisation in its head, for a trainer that takes a model."""
    model = AutoModelForSequenceClassification.from_pretrained(PLAYGROUND / "reward", num_labels=1)
    head = torch.nn.Linear(model.score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(model.score.weight / model.config.score_std)
        head.bias.fill_(-model.config.score_mean / model.config.score_std)
    model.score = head
    return model


def policy() -> Any:
    """The supervised model, from which every run starts."""
    return AutoModelForCausalLM.from_pretrained(PLAYGROUND / "sft")


def common(job: dict[str, Any]) -> dict[str, Any]:
    """Options that all trainers have."""
    return {
        "output_dir": job["folder"],
        "report_to": [],
        "logging_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "disable_tqdm": True,
        "seed": job["seed"],
    }


def groups(job: dict[str, Any], given: dict[str, Any]) -> Any:
    """GRPO and RLOO."""
    name = job["trainer"]
    rows = job["prompts"] * job["responses"]
    options = getattr(trl, f"{name}Config")(
        per_device_train_batch_size=rows,
        num_generations=job["responses"],
        max_completion_length=job["length"],
        max_steps=job["steps"],
        beta=job["beta"],
        temperature=1.0,
        **job["options"],
        **common(job),
    )
    language_model = policy()
    return getattr(trl, f"{name}Trainer")(
        model=language_model, reward_funcs=Scorer(job["length"]), args=options, **given
    )


def online_dpo(job: dict[str, Any], given: dict[str, Any]) -> Any:
    """Online DPO, with two responses per prompt."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    options = OnlineDPOConfig(
        per_device_train_batch_size=job["prompts"],
        max_new_tokens=job["length"],
        max_length=128,
        max_steps=job["steps"],
        beta=job["beta"],
        temperature=1.0,
        top_k=0,
        **common(job),
    )
    models = {"model": policy(), "ref_model": policy()}
    return OnlineDPOTrainer(reward_funcs=Scorer(job["length"]), args=options, **models, **given)


def ppo(job: dict[str, Any], given: dict[str, Any]) -> Any:
    """PPO with a separate critic, as TRL has it; the critic starts from the supervised model, as ours."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    epochs, minibatches = job["epochs"], job["minibatches"]
    options = PPOConfig(
        per_device_train_batch_size=job["prompts"] // minibatches,
        num_mini_batches=minibatches,
        gradient_accumulation_steps=minibatches,
        total_episodes=job["prompts"] * job["steps"] // (epochs * minibatches),
        response_length=job["length"],
        num_ppo_epochs=epochs,
        local_rollout_forward_batch_size=job["prompts"],
        num_sample_generations=0,
        temperature=1.0,
        kl_coef=job["beta"],
        stop_token="eos",
        **common(job),
    )
    tokenizer = given["processing_class"]
    tokenizer.padding_side = "left"  # of prompts, as in TRL's own example; its trainer pads as the tokenizer does
    tokens = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in given["train_dataset"]]
    rows = {"train_dataset": Dataset.from_list(tokens), "eval_dataset": Dataset.from_list(tokens[:1])}
    critic = AutoModelForSequenceClassification.from_pretrained(PLAYGROUND / "sft", num_labels=1)
    critic.score.weight.data.zero_()
    models = {"model": policy(), "ref_model": policy(), "reward_model": normalised_model(), "value_model": critic}
    return PPOTrainer(args=options, **models, processing_class=tokenizer, **rows)


def main(path: str) -> None:
    """Train, and save the model where the job says."""
    torch.set_num_threads(1)
    job = json.loads(Path(path).read_text())
    tokenizer = AutoTokenizer.from_pretrained(PLAYGROUND / "sft")
    rows = [{"prompt": prompt} for prompt in training_prompts()]
    given = {"processing_class": tokenizer, "train_dataset": Dataset.from_list(rows)}
    make = {"GRPO": groups, "RLOO": groups, "DPO": online_dpo, "PPO": ppo}[job["trainer"]]
    trainer = make(job, given)
    trainer.train()
    model = trainer.model
    model = getattr(model, "policy", model)  # PPO wraps policy and critic
    model.save_pretrained(Path(job["folder"]) / "export")
    tokenizer.save_pretrained(Path(job["folder"]) / "export")


if __name__ == "__main__":
    main(sys.argv[1])

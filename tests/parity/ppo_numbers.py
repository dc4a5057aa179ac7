"""What TRL 1.12's `PPOTrainer` computes in a real step of two epochs; called by `trl_numbers.py`."""

from __future__ import annotations

import sys
from typing import Any

import torch
from datasets import Dataset
from recipe import PROMPTS, gradient_of, language_model, scorer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PROMPT = PROMPTS[0]
UNFINISHED = [[4, 8, 15, 16, 20], [23, 3, 18, 27, 5], [30, 11, 12, 9, 6]]
MIXED = [[4, 8, 2, 0, 0], [23, 3, 18, 27, 5], [30, 11, 12, 9, 2]]
"""The first stops early, the second not at all, the third with its last token."""
ROLLOUT = ("scores", "logprobs", "ref_logprobs", "values", "rewards", "returns", "advantages")
LEARNING_RATE = 0.005


class Recorder:
    """Reads TRL's own variables as it whitens the advantages and as it takes each gradient."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.rollout, self.updates = trainer, {}, []  # type: ignore[var-annotated]
        self.whiten, self.backward = ppo_trainer.masked_whiten, trainer.accelerator.backward
        trainer.accelerator.backward = self.take_gradient

    def take_rollout(self, values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
        """In place of `masked_whiten`: its result, and everything that the rollout consists of."""
        whitened = self.whiten(values, mask, shift_mean)
        found = sys._getframe(1).f_locals
        self.rollout = {name: found[name].tolist() for name in ROLLOUT}
        self.rollout["whitened"] = torch.masked_fill(whitened, ~mask, 0).tolist()
        return whitened

    def take_gradient(self, loss: torch.Tensor) -> None:
        """In place of `accelerator.backward`: the same, and the loss, its parts and the gradient."""
        found = sys._getframe(1).f_locals
        self.backward(loss)
        parts = {name: float(found[name].detach()) for name in ("loss", "pg_loss", "vf_loss")}
        networks = self.trainer.accelerator.unwrap_model(self.trainer.model)
        gradients = {"policy": gradient_of(networks.policy), "critic": gradient_of(networks.value_model)}
        self.updates.append({**parts, "gradient": gradients})


def ppo(
    folder: str, tokenizer: Any, settings: dict[str, Any], responses: list[list[int]], **options: Any
) -> dict[str, Any]:
    """One rollout of the fixed responses and two steps of plain gradient descent on all of it."""
    policy, critic = language_model("policy"), scorer("critic")
    optimizer = torch.optim.SGD([*policy.parameters(), *critic.parameters()], lr=LEARNING_RATE)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(responses),
            num_mini_batches=1,
            num_ppo_epochs=2,
            total_episodes=len(responses),
            response_length=len(responses[0]),
            stop_token="eos",
            num_sample_generations=0,
            save_strategy="no",
            **settings,
            **options,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=language_model("reference"),
        reward_model=scorer("reward"),
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": PROMPT}] * len(responses)),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )
    recorder = Recorder(trainer)

    def generate(model: Any, queries: torch.Tensor, pad: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of sampling: the fixed responses, with the scores that sampling at this temperature records."""
        generated = torch.cat([queries, torch.tensor(responses)], 1)
        logits = ppo_trainer.forward(model, generated, pad).logits[:, queries.shape[1] - 1 : -1]
        return generated, logits / config.temperature

    original = ppo_trainer.generate, ppo_trainer.masked_whiten
    ppo_trainer.generate, ppo_trainer.masked_whiten = generate, recorder.take_rollout
    trainer.train()
    ppo_trainer.generate, ppo_trainer.masked_whiten = original
    assert recorder.rollout
    assert len(recorder.updates) == 2
    inputs = {"prompt": PROMPT, "responses": responses, "learning_rate": LEARNING_RATE, "options": options}
    return {**inputs, "rollout": recorder.rollout, "updates": recorder.updates}


def ppo_cases(folder: str, tokenizer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Responses that were all cut off, where TRL's masks are the tokens, with other options too, and finished ones."""
    other = {"gamma": 0.98, "lam": 0.9, "cliprange": 0.02, "cliprange_value": 0.02, "vf_coef": 0.5, "kl_coef": 0.3}
    return {
        "ppo/unfinished": ppo(folder, tokenizer, settings, UNFINISHED),
        "ppo/other options": ppo(folder, tokenizer, settings, UNFINISHED, temperature=1.0, kl_estimator="k3", **other),
        "ppo/penalty": ppo(folder, tokenizer, settings, UNFINISHED, missing_eos_penalty=1.0),
        "ppo/finished": ppo(folder, tokenizer, settings, MIXED),
    }

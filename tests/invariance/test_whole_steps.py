"""One optimiser step through the real command line: its gradient is the same however the step is cut.

Plain gradient descent with a huge learning rate leaves weights that are the gradient, times a number, but for rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from leavings import weights

from rlhf_lightning.__main__ import main

DESCENT = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e5", "--trainer.gradient_clip_val", "null"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]
ROWS = ["--data.size", "16", "--data.validation_size", "2"]
ONE_STEP = ["--model.algorithm.epochs", "1", "--model.algorithm.minibatches", "1", "--data.batch_size", "8"]
PPO = ["--config", "ppo.yaml", *ONE_STEP]
GRPO = ["--config", "grpo.yaml", *ONE_STEP, "--model.algorithm.responses_per_prompt", "2"]
REINFORCE = ["--config", "reinforce.yaml", *ONE_STEP, "--model.algorithm.responses_per_prompt", "2"]
POLICIES = {
    "ppo": PPO,
    "ppo_separate_critic": [*PPO, "--model.critic", "separate"],
    "ppo_entropy_and_kl_in_the_loss": [
        *[*PPO, "--model.algorithm.entropy_coef", "0.1"],
        *["--model.algorithm.kl.placement", "loss", "--model.algorithm.kl.estimator", "k2"],
    ],
    "reinforce_leave_one_out": REINFORCE,
    "reinforce_batch": [*REINFORCE, "--model.algorithm.baseline", "batch"],
    "reinforce_moving": [*REINFORCE, "--model.algorithm.baseline", "moving"],
    "reinforce_none": [*REINFORCE, "--model.algorithm.baseline", "none"],
    "grpo_sequence": GRPO,
    "grpo_token": [*GRPO, "--model.algorithm.aggregation", "token"],
    "grpo_dr": [*GRPO, "--model.algorithm.aggregation", "dr_grpo", "--model.algorithm.max_response_length", "24"],
    "dpo_online": ["--config", "dpo.yaml", *ONE_STEP, "--model.algorithm.responses_per_prompt", "3"],
    "dpo_offline": ["--config", "dpo_offline.yaml", *ONE_STEP],
    "dpo_offline_ipo": ["--config", "dpo_offline.yaml", *ONE_STEP, "--model.algorithm.loss_type", "ipo"],
}
WITH_HOLES = ("ppo", "ppo_separate_critic", "reinforce_leave_one_out", "grpo_token", "dpo_online")
READING = ["--model.generation", "tests.holes.ReadingSampler"]
POLICIES |= {f"{name}_with_holes": [*POLICIES[name], *READING] for name in WITH_HOLES}
LR = ["--model.lr_scheduler", "null"]
RECORDED = {
    "sft": ["--config", "sft.yaml", *LR],
    "sft_on_prompts_too": ["--config", "sft.yaml", *LR, "--model.completion_only", "false"],
    "reward": ["--config", "reward.yaml", "--model.centering", "0.01"],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def moved(folder: str, *words: str) -> dict[str, torch.Tensor]:
    assert main(["fit", *words, *ROWS, *DESCENT, *QUIET, "--trainer.default_root_dir", folder]) == 0
    return weights(Path(folder) / "export")


def assert_same_gradient(cuts: list[dict[str, torch.Tensor]], tolerance: float = 1e-6) -> None:
    size = torch.stack([value.norm() for value in cuts[0].values()]).norm()
    assert size > 1e3  # the weights themselves are below 100: what is compared is the gradient
    for other in cuts[1:]:
        apart = torch.stack([(other[name] - value).norm() for name, value in cuts[0].items()]).norm()
        assert apart / size < tolerance


@pytest.mark.parametrize("name", POLICIES)
def test_micro_batches_of_a_rollout(name: str) -> None:
    cuts = []
    for parts in (1, 8):  # batches of a rollout are joined
        size = ["--data.batch_size", str(8 // parts), "--trainer.accumulate_grad_batches", str(parts)]
        cuts.append(moved(f"parts-{parts}", *POLICIES[name], *size))
    # the advantages of a prompt's responses cancel, and rounding weighs more: float32 is 1.1e-6 off the same sum in float64
    assert_same_gradient(cuts, 3e-6 if name.startswith("grpo") else 1e-6)


@pytest.mark.parametrize("name", RECORDED)
def test_micro_batches_of_recorded_rows(name: str) -> None:
    cuts = []
    for parts in (1, 8):
        size = ["--data.batch_size", str(8 // parts), "--trainer.accumulate_grad_batches", str(parts)]
        cuts.append(moved(f"parts-{parts}", *RECORDED[name], *size))
    assert_same_gradient(cuts, 3e-6 if name == "reward" else 1e-6)  # the difference of two scores has more rounding

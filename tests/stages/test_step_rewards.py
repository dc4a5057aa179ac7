"""Runs whose rewards fall on the steps of a response: they learn from them, and resume with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from rlhf_lightning import LoaderData
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import LengthReward, StepReward, WeightedSum
from rlhf_lightning.stages import PolicyStage

NAMES = ("final_values", "truncated")
ROWS = [{"prompt": f"say {word}"} for word in ("dog", "cat", "hello", "thanks")]


class Watch(Callback):
    """Keeps the batch of every rollout, and the checkpoint after a step."""

    def __init__(self, save_at: int = -1, path: Path | None = None) -> None:
        self.batches: list[Any] = []
        self.save_at, self.path = save_at, path

    def on_rollout_end(self, trainer: Any, stage: Any, rollout: Any) -> None:
        self.batches.append(rollout)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.save_at:
            trainer.save_checkpoint(self.path)


def letters(steps: list[list[str]]) -> list[list[float]]:
    return [[0.1 * (1 + place) + 0.01 * len(text) for place, text in enumerate(row)] for row in steps]


def fitted(root: Path, folder: str, algorithm: Any, watch: Watch, ckpt_path: Path | None = None) -> list[torch.Tensor]:
    torch.manual_seed(3)
    reward = WeightedSum({"steps": StepReward(letters, split="e"), "short": LengthReward(3)})
    stage = PolicyStage(
        ModelConfig(name_or_path=folder), algorithm, reward, generation=Sampler(12),
        optimizer=partial(torch.optim.AdamW, lr=0.01),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, default_root_dir=root, callbacks=[watch], limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader: Any = DataLoader(ROWS, batch_size=2, collate_fn=list)  # type: ignore[arg-type]
    trainer.fit(stage, datamodule=LoaderData(loader), ckpt_path=ckpt_path)
    return [p.detach().clone() for p in stage.network.parameters()]


@pytest.mark.parametrize(
    "algorithm",
    [
        PPO(responses_per_prompt=4, epochs=2, minibatches=2),
        PPO(responses_per_prompt=4, epochs=2, minibatches=2, bootstrap_truncated=True, value_lambda=1.0, gamma=0.9),
        REINFORCE(reward_to_go=True, minibatches=2),
    ],
)
def test_a_run_learns_from_its_steps_and_resumes_with_them(
    algorithm: Any, tmp_path: Path, tiny_model_folder: Callable[[str], str]
) -> None:
    folder, whole, path = tiny_model_folder("llama"), Watch(), tmp_path / "half.ckpt"
    expected = fitted(tmp_path / "whole", folder, copy.deepcopy(algorithm), whole)
    for batch in whole.batches:
        end = -0.01 * (batch.mask.sum(-1) - 3).clamp(min=0)
        torch.testing.assert_close(batch.step_rewards.sum(-1) + end, batch.rewards)
        assert batch.step_rewards[~batch.mask].eq(0).all()
    assert max(int(batch.step_rewards.ne(0).sum(-1).max()) for batch in whole.batches) > 1
    fitted(tmp_path / "half", folder, copy.deepcopy(algorithm), Watch(1, path))
    saved = torch.load(path, weights_only=False)
    assert _has(saved, "step_rewards")  # the buffer of the rollout
    if algorithm.bootstraps:
        assert _has(saved, "final_values")
        final, truncated = (torch.cat([getattr(each, name) for each in whole.batches]) for name in NAMES)
        assert truncated.any()
        assert not truncated.all()
        assert (
            final[len(whole.batches[0]) :].ne(0).equal(truncated[len(whole.batches[0]) :])
        )  # the critic begins with 0
    resumed = fitted(tmp_path / "resumed", folder, copy.deepcopy(algorithm), Watch(), path)
    assert all(map(torch.equal, expected, resumed))


def _has(value: Any, name: str) -> bool:
    if isinstance(value, dict):
        return name in value or any(_has(each, name) for each in value.values())
    return isinstance(value, list | tuple) and any(_has(each, name) for each in value)

"""An actor that is no language model learns a two-step bandit with PPO, through Lightning's loop, and resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import RolloutStage
from rlhf_lightning.types import Completions, PolicyOutput, RawRows, Rows

STATES, ACTIONS, STEPS = 3, 4, 2
BEST = torch.tensor([[0, 1], [2, 0], [3, 3]])
"""The action that is rewarded, by state and step."""


class Table(nn.Module):
    """A logit for each state, step and action, and a value for each state and step."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(STATES, STEPS, ACTIONS))
        self.worth = nn.Parameter(torch.zeros(STATES, STEPS))

    def forward(self, rows: Rows, entropy: bool = False) -> PolicyOutput:
        state, width = rows.tokens[:, 0], rows.mask.shape[1]
        logprobs = self.logits[state, :width].log_softmax(-1)
        chosen = logprobs.gather(-1, rows.tokens[:, 1:, None]).squeeze(-1)
        spread = -(logprobs.exp() * logprobs).sum(-1) if entropy else None
        return PolicyOutput(chosen * rows.mask, spread, self.values(rows))

    def values(self, rows: Rows) -> Tensor:
        return self.worth[rows.tokens[:, 0], : rows.mask.shape[1]] * rows.mask

    def final_values(self, rows: Rows) -> Tensor:
        return self.worth[rows.tokens[:, 0], rows.reach.clamp(max=STEPS - 1)] * rows.truncated

    def probe_capabilities(self) -> None:
        """A table needs nothing."""

    def backbones(self) -> list[Any]:
        return []


@dataclass
class Player:
    """Plays the bandit: the first token of a row is the state, the others are actions."""

    policy: Table
    ends_early: bool = False
    """Every other game is over after its first action, which no rule of the game says."""

    def generate(
        self, rows: RawRows, responses_per_prompt: int, randomness: Randomness, temperature: float | None = None
    ) -> Completions:
        state = torch.tensor([row["state"] for row in rows]).repeat_interleave(responses_per_prompt)
        chances = self.policy.logits.detach()[state].softmax(-1)
        numbers = randomness.repeated(responses_per_prompt).uniforms(STEPS).T[:, :, None]
        drawn = (chances.cumsum(-1) < numbers).sum(-1).clamp(max=ACTIONS - 1)
        actions = chances.argmax(-1) if temperature == 0 else drawn
        early = torch.arange(len(state)) % 2 == 1 if self.ends_early else torch.zeros(len(state), dtype=torch.bool)
        mask = torch.ones(len(state), STEPS, dtype=torch.bool) & ~(early[:, None] & (torch.arange(STEPS) > 0))
        right = ((actions == BEST[state]) & mask).float() / STEPS
        return Completions(
            tokens=torch.cat([state[:, None], actions], 1),
            prompt_mask=torch.ones(len(state), 1, dtype=torch.bool),
            mask=mask,
            groups=torch.tensor(randomness.rows).repeat_interleave(responses_per_prompt),
            truncated=early,
            rewards=right.sum(-1),
            step_rewards=right,
        )


class BanditStage(RolloutStage):
    def __init__(self, chosen: PPO, ends_early: bool = False) -> None:
        super().__init__(chosen, partial(torch.optim.Adam, lr=0.05))
        self.table: Table | None = None
        self.ends_early = ends_early

    def configure_model(self) -> None:
        if self.table is None:
            self.table = Table()

    def actor(self) -> Table:
        assert self.table is not None
        return self.table

    def generator(self) -> Player:
        return Player(self.actor(), self.ends_early)


class States(LightningDataModule):
    def train_dataloader(self) -> Any:
        rows: Any = [{"state": i % STATES} for i in range(48)]
        return DataLoader(rows, batch_size=12, shuffle=True, collate_fn=list)

    def val_dataloader(self) -> Any:
        rows: Any = [{"state": i % STATES} for i in range(30)]
        return DataLoader(rows, batch_size=15, collate_fn=list)


def algorithm(**options: Any) -> PPO:
    given = {"entropy_coef": 0.01, "update_kl_limit": 0.5, **options}
    return PPO(responses_per_prompt=4, epochs=2, minibatches=3, kl=KLPenalty(coef=0.0), **given)


def trained(
    root: Path, steps: int, checkpoint: Path | None = None, ends_early: bool = False, **options: Any
) -> tuple[BanditStage, Trainer]:
    torch.manual_seed(3)
    stage = BanditStage(algorithm(**options), ends_early)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(stage, datamodule=States(), ckpt_path=None if checkpoint is None else str(checkpoint))
    assert trainer.global_step == steps
    return stage, trainer


def test_ppo_learns_a_bandit(tmp_path: Path) -> None:
    stage, trainer = trained(tmp_path, 144)
    assert torch.equal(stage.actor().logits.argmax(-1), BEST)
    assert float(trainer.callback_metrics["val/reward/mean"]) > 0.8  # by chance 0.25
    assert float(trainer.callback_metrics["val/response/length"]) == STEPS
    assert stage.collector is not None
    assert {"reward/mean", "value/explained_variance", "policy/entropy"} <= set(stage.collector.metrics)
    assert not {name for name in stage.collector.metrics if "reference" in name}


@pytest.mark.parametrize("bootstraps", [True, False])
def test_a_critic_of_games_that_end_early_predicts_whole_ones_only_where_it_bootstraps(
    tmp_path: Path, bootstraps: bool
) -> None:
    """A whole game of the best actions is worth 1, and one that ended early 0.5: its first action was rewarded."""
    options = {"bootstrap_truncated": bootstraps, "value_coef": 1.0, "value_clip_range": None, "update_kl_limit": None}
    stage, _ = trained(tmp_path, 480, ends_early=True, **options)
    table = stage.actor()
    assert torch.equal(table.logits.argmax(-1), BEST)
    first, second = table.worth.detach().T
    assert second.tolist() == pytest.approx([0.5] * STATES, abs=0.1)
    assert first.tolist() == pytest.approx([1.0 if bootstraps else 0.75] * STATES, abs=0.1)


@pytest.mark.parametrize(("steps", "bootstraps"), [(9, False), (12, False), (9, True)])
def test_a_bandit_resumes_exactly_inside_and_between_rollouts(tmp_path: Path, steps: int, bootstraps: bool) -> None:
    options: Any = {"ends_early": bootstraps, "bootstrap_truncated": bootstraps}
    whole, _ = trained(tmp_path, 24, **options)
    _, first = trained(tmp_path, steps, **options)
    first.save_checkpoint(tmp_path / "at.ckpt")
    resumed, _ = trained(tmp_path, 24, tmp_path / "at.ckpt", **options)
    for name, value in whole.actor().state_dict().items():
        assert torch.equal(resumed.actor().state_dict()[name], value), name


def test_a_judge_replaces_the_rewards_of_the_generator(tmp_path: Path) -> None:
    class Zero(Reward):
        def __call__(self, completions: Completions) -> list[float | None]:
            return (completions.tokens[:, 1:] == 0).float().mean(-1).tolist()  # type: ignore[no-any-return]

    class Judged(BanditStage):
        def judge(self) -> Reward:
            return Zero()

    torch.manual_seed(3)
    stage = Judged(algorithm())
    trainer = Trainer(
        accelerator="cpu", max_steps=96, max_epochs=-1, logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(stage, datamodule=States())
    assert stage.actor().logits.argmax(-1).eq(0).all()


def test_an_algorithm_that_reads_a_reference_is_refused_without_one(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with pytest.raises(
        UserError, match=r"BanditStage has no reference; PPO compares the actor with one: set kl\.coef to 0"
    ):
        trainer.fit(BanditStage(PPO()), datamodule=States())

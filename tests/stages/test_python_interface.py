"""A stage and a trainer in a script or a notebook: measured before it is trained, trained after, and loaded again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from rlhf_lightning import LoaderData
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import FunctionReward, LengthReward
from rlhf_lightning.stages import PolicyStage, RewardStage, SupervisedStage
from rlhf_lightning.stages.stage import Stage

KINDS = ("sft", "reward", "ppo", "dpo_offline")


def pairs(*words: str) -> list[dict[str, str]]:
    return [{"prompt": f"say {w}", "completion": w, "chosen": w, "rejected": "no " + w} for w in words]


class Data(LightningDataModule):
    """Rows that are there when they are needed, as those of the package's own data modules."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_rows = pairs("dog", "cat", "hello", "thanks")
        if stage == "test":
            self.test_rows = pairs("little", "the")
        self.validation_rows = pairs("please", "you")

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_rows, batch_size=2, shuffle=True, collate_fn=list)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation_rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]

    def test_dataloader(self) -> Any:
        return DataLoader(self.test_rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]


def options(kind: str, folder: str) -> dict[str, Any]:
    config, given = ModelConfig(name_or_path=folder), {"optimizer": partial(torch.optim.AdamW, lr=0.01)}
    if kind in ("sft", "reward"):
        return {"model": config, **given}
    algorithm, reward = (PPO(minibatches=2), LengthReward(2)) if kind == "ppo" else (DPO(), None)
    sampler = Sampler(4)
    return {"policy": config, "algorithm": algorithm, "reward": reward, "generation": sampler, **given}


def kind_of(kind: str) -> type[Stage]:
    return {"sft": SupervisedStage, "reward": RewardStage}.get(kind, PolicyStage)


def trainer(root: Path, **options: Any) -> Trainer:
    torch.manual_seed(3)
    return Trainer(**{
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False, "default_root_dir": root,
        "enable_progress_bar": False, "enable_model_summary": False, **options,
    })  # fmt: skip


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_returned_and_no_step_is_lost_by_it(kind: str, folder: str, tmp_path: Path) -> None:
    stage, data, own = kind_of(kind)(**options(kind, folder)), Data(), trainer(tmp_path)
    name = "preference/margin" if kind == "dpo_offline" else "reward/mean" if kind == "ppo" else "loss/policy"
    (before,) = own.validate(stage, datamodule=data, verbose=False)
    own.fit(stage, datamodule=data)
    steps, after = own.global_step, float(own.callback_metrics[f"val/{name}"])
    assert steps == (2 * 4 * 2 if kind == "ppo" else 2)
    assert own.validate(stage, datamodule=data, verbose=False)[0][f"val/{name}"] == pytest.approx(after)
    assert f"test/{name}" in own.test(stage, datamodule=data, verbose=False)[0]
    if kind == "dpo_offline":
        assert before[f"val/{name}"] == 0  # the policy is its own reference before the first step, and was not after
        assert after != 0
    alone = kind_of(kind)(**options(kind, folder))
    trainer(tmp_path).fit(alone, datamodule=Data())
    assert all(torch.equal(a, b) for a, b in zip(stage.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_loaded_without_a_trainer_and_measured_without_a_trace(
    kind: str, folder: str, tmp_path: Path
) -> None:
    stage, path = kind_of(kind)(**options(kind, folder)), tmp_path / "one.ckpt"
    own = trainer(tmp_path)
    own.fit(stage, datamodule=Data())
    own.save_checkpoint(path)
    loaded = kind_of(kind).load_from_checkpoint(path, weights_only=True, **options(kind, folder))
    assert all(torch.equal(a, b) for a, b in zip(stage.parameters(), loaded.parameters(), strict=True))
    other = trainer(tmp_path / "other")
    (of_path,) = other.validate(kind_of(kind)(**options(kind, folder)), Data(), ckpt_path=path, verbose=False)
    assert other.global_step == 0
    other.fit(loaded, datamodule=Data())  # and not: all of its steps are taken
    assert other.global_step == own.global_step
    of_loaded = kind_of(kind).load_from_checkpoint(path, weights_only=True, **options(kind, folder))
    assert trainer(tmp_path / "third").validate(of_loaded, Data(), verbose=False) == [of_path]


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_a_run_that_logs_nothing(kind: str, folder: str, tmp_path: Path) -> None:
    bare = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    for given in ({"log_every_n_steps": 0}, {"barebones": True, **bare}):
        own = trainer(tmp_path, max_steps=2, **given)
        own.fit(kind_of(kind)(**options(kind, folder)), datamodule=Data())
        assert own.global_step == 2


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_a_search_for_a_learning_rate_leaves_the_run_as_it_was(kind: str, folder: str, tmp_path: Path) -> None:
    weights = []
    for searches in (False, True):
        stage, own = kind_of(kind)(**options(kind, folder)), trainer(tmp_path)
        if searches:
            found = Tuner(own).lr_find(stage, datamodule=Data(), num_training=2, update_attr=False)
            assert len(found.results["loss"]) == 2
        own.fit(stage, datamodule=Data())
        weights.append([x.detach().clone() for x in stage.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_reward_is_any_callable(folder: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def first_letter(responses: list[str], prompts: list[str]) -> list[float]:
        asked.extend(prompts)
        return [1.5] * len(responses)

    class Scorer:
        def __call__(self, responses: list[str], completion: list[str]) -> list[float]:
            return [0.25 if len(word) > 3 else 0.75 for word in completion]

    own = trainer(tmp_path, num_sanity_val_steps=0)
    evaluation = {"scorer": Scorer(), "partial": partial(first_letter, prompts=[])}
    stage = PolicyStage(**{**options("ppo", folder), "reward": first_letter, "evaluation_rewards": evaluation})
    own.fit(stage, datamodule=Data())
    assert set(asked) == {"say dog", "say cat", "say hello", "say thanks", "say please", "say you"}
    assert own.callback_metrics["val/reward/mean"] == 1.5
    assert own.callback_metrics["val/reward/scorer"] == 0.5  # please 0.25, you 0.75


def test_what_cannot_be_called_is_no_reward(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"FunctionReward.function is 3; set it to an import path, or pass a callable"):
        FunctionReward(3)  # type: ignore[arg-type]
    stage = PolicyStage(**{**options("ppo", folder), "reward": LengthReward})
    with pytest.raises(UserError, match=r"the reward 'mean' is <class .*LengthReward'>; pass a Reward or a function"):
        trainer(tmp_path).fit(stage, datamodule=Data())


def test_plain_loaders_work_through_a_data_module(folder: str, tmp_path: Path) -> None:
    rows = pairs("dog", "cat", "hello", "thanks")
    train, held_out = DataLoader(rows, batch_size=2), DataLoader(rows[:2], batch_size=2)  # type: ignore[arg-type]
    own = trainer(tmp_path)
    own.fit(SupervisedStage(**options("sft", folder)), datamodule=LoaderData(train, held_out))
    assert own.global_step == 2
    assert "val/loss/policy" in own.callback_metrics
    with pytest.raises(
        UserError, match=r"trainer.fit\(stage, datamodule=LoaderData\(train_loader, validation_loader\)\)"
    ):
        trainer(tmp_path).fit(SupervisedStage(**options("sft", folder)), train)
    with pytest.raises(UserError, match=r"LoaderData.train is not given"):
        trainer(tmp_path).fit(SupervisedStage(**options("sft", folder)), datamodule=LoaderData())
    with pytest.raises(UserError, match=r"LoaderData.train is 'rows.jsonl'; expected a DataLoader"):
        LoaderData("rows.jsonl")

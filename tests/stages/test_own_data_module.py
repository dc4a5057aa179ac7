"""A LightningDataModule that knows nothing of this library, through Lightning's own Python interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM

from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.rewards import LengthReward
from rlhf_lightning.stages import PolicyStage, RewardStage, SupervisedStage

PAIRS = [
    {"prompt": f"say {word}", "chosen": word, "rejected": "no " + word} for word in ("dog", "cat", "hello", "thanks")
]


class Plain(LightningDataModule):
    def __init__(self, rows: list[Any]) -> None:
        super().__init__()
        self.data: Any = rows

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=2, shuffle=True, collate_fn=list)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=2, collate_fn=list)


def fitted(folder: str, data: Any, root: Path, **options: Any) -> tuple[Trainer, PolicyStage]:
    stage = PolicyStage(ModelConfig(name_or_path=folder), generation=Sampler(6), **options)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(stage, datamodule=data)
    return trainer, stage


def test_plain_prompts(tmp_path: Path, tiny_model_folder: Callable[[str], str]) -> None:
    data = Plain(["say dog", "say cat", "please", "thank you"])
    algorithm = REINFORCE(responses_per_prompt=2, minibatches=2)
    trainer, stage = fitted(
        tiny_model_folder("llama"), data, tmp_path, algorithm=algorithm, reward=LengthReward(2), reference="full"
    )
    assert trainer.global_step == 4  # two batches of prompts, two optimiser steps each
    assert len(stage.validation_samples) == 4
    assert torch.isfinite(trainer.callback_metrics["val/reward/mean"])


def test_steps_that_no_rollout_fills_are_told_of_once(
    tmp_path: Path, tiny_model_folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    data, algorithm = Plain(["say dog", "say cat", "please", "thank you"]), REINFORCE(minibatches=9)
    fitted(tiny_model_folder("llama"), data, tmp_path, algorithm=algorithm, reward=LengthReward(2), reference="full")
    assert capsys.readouterr().out.count("a rollout of 2 rows leaves 1 of 9 minibatches empty") == 1


class TrainsOnly(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(PAIRS, batch_size=2, collate_fn=list)


def test_a_data_module_without_validation_rows(tmp_path: Path, tiny_model_folder: Callable[[str], str]) -> None:
    trainer, stage = fitted(tiny_model_folder("llama"), TrainsOnly(), tmp_path, algorithm=DPO())
    assert trainer.global_step == 2
    assert not stage.validation_samples


def test_pairs_in_batches(tmp_path: Path, tiny_model_folder: Callable[[str], str]) -> None:
    trainer, _ = fitted(tiny_model_folder("gpt2"), Plain(PAIRS), tmp_path, algorithm=DPO())
    assert trainer.global_step == 2
    assert 0 <= float(trainer.callback_metrics["val/preference/accuracy"]) <= 1


class Given(LightningDataModule):
    """Gives what it is told to."""

    def __init__(self, train: Callable[[], Any], held_out: Callable[[], Any] = list) -> None:
        super().__init__()
        self.train, self.held_out = train, held_out

    def train_dataloader(self) -> Any:
        return self.train()

    def val_dataloader(self) -> Any:
        return self.held_out()


def loader(rows: Any = PAIRS, **options: Any) -> Any:
    return DataLoader(rows, **{"batch_size": 2, "collate_fn": list, **options})


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(PAIRS)


NESTED = [{"prompt": [{"role": "user", "content": word}]} for word in ("dog", "cat")]
SEVERAL = "the data module returns several loaders"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (Given(loader, lambda: [loader(), loader()]), SEVERAL),
        (Given(loader, lambda: {"one": loader()}), SEVERAL),
        (Given(lambda: [loader(), loader()]), SEVERAL),
        (Given(lambda: loader(batch_size=8, drop_last=True)), "the train data loader has no batch; set its batch size"),
        (Given(lambda: loader(Stream())), "the train data loader has no length; add __len__ to its data set"),
        (Given(lambda: loader(batch_size=None, collate_fn=None)), r"found {'prompt': 'say dog', 'chosen': 'dog'"),
        (Given(lambda: loader(NESTED, collate_fn=None)), r"found the row {'prompt': {'role': \['user', 'user'\]"),
        (Given(lambda: loader([{"text": "dog"}] * 2)), r"found the row {'text': 'dog'}"),
        (Given(lambda: loader([1, 2])), r"found the row {'prompt': 1}"),
    ],
)
def test_loaders_that_cannot_be_read_are_said_to_be(
    data: LightningDataModule, fault: str, tmp_path: Path, tiny_model_folder: Callable[[str], str]
) -> None:
    with pytest.raises(UserError, match=fault):
        fitted(tiny_model_folder("llama"), data, tmp_path, algorithm=DPO(), reward=LengthReward(2), reference="full")


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (Given(lambda: [loader()], lambda: (loader(),)), {}),  # one in a list
        (Given(lambda: loader(collate_fn=None)), {}),  # columns
        (Given(lambda: loader(Stream())), {"iterations": 2}),
    ],
)
def test_loaders_that_can(
    data: LightningDataModule, options: Any, tmp_path: Path, tiny_model_folder: Callable[[str], str]
) -> None:
    given = {"algorithm": DPO(), "reward": LengthReward(2), "reference": "full", **options}
    assert fitted(tiny_model_folder("llama"), data, tmp_path, **given)[0].global_step == 2


def test_no_data_module_is_said_so(tmp_path: Path, tiny_model_folder: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match="takes its rows from a data module"):
        fitted(tiny_model_folder("llama"), None, tmp_path, algorithm=DPO(), reward=LengthReward(2))


@pytest.mark.parametrize("arch", ["gpt2", "llama"])  # learned positions, and rotary ones, which go on without end
def test_a_prompt_that_leaves_no_room_is_said_so(
    tmp_path: Path, tiny_model_folder: Callable[[str], str], tokenizer: Any, arch: str
) -> None:
    folder, long = tmp_path / arch, "say dog " * 60
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder(arch))
    model.config.max_position_embeddings = 128
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data, options = Plain(["say cat", long]), {"algorithm": REINFORCE(), "reward": LengthReward(2), "reference": "full"}
    said = rf"a batch of the data: prompt of row 1 \('say dog.*…\) has {len(tokenizer(long)['input_ids'])} tokens"
    with pytest.raises(UserError, match=rf"{said}, and the model's context of 128 leaves 122 beside max_new_tokens 6"):
        fitted(str(folder), data, tmp_path, **options)
    fitted(str(folder), data, tmp_path, max_prompt_length=122, **options)
    shown = Plain([])
    shown.predict_rows = [{"prompt": "say cat"}, {"prompt": long}]  # type: ignore[assignment]
    with pytest.raises(UserError, match="predict data: prompt of row 1"):
        Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path).predict(
            PolicyStage(ModelConfig(name_or_path=str(folder)), generation=Sampler(6), **options), datamodule=shown
        )


def test_supervised_fine_tuning_cuts_the_prompts_that_it_writes_to(
    tmp_path: Path, tiny_model_folder: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Plain([{"prompt": "say dog " * 60, "completion": "dog"}])
    stage = SupervisedStage(ModelConfig(name_or_path=tiny_model_folder("gpt2")), generation=Sampler(6))
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path, num_sanity_val_steps=0)
    trainer.fit(stage, datamodule=data)
    assert stage.validation_samples[0]["prompt"].count("say") < 60
    assert "truncated to fit: 1 prompts, counted each time they were read" in capsys.readouterr().out


def test_ratings_one_to_a_row_have_nothing_to_be_compared_with(
    tmp_path: Path, tiny_model_folder: Callable[[str], str]
) -> None:
    data = Plain([{"prompt": "say dog", "response": word, "rating": len(word)} for word in ("dog", "hello")])
    config, options = ModelConfig(name_or_path=tiny_model_folder("llama")), {"logger": False, "accelerator": "cpu"}
    for sanity in (2, 0):
        trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, num_sanity_val_steps=sanity, **options)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"have one each \(columns prompt, response, rating\); give all responses"):
            trainer.fit(RewardStage(config), datamodule=data)
    Trainer(max_epochs=1, default_root_dir=tmp_path, **options).fit(  # type: ignore[arg-type]
        RewardStage(config, objective="regression"), datamodule=data
    )


def test_pairs_to_test_on_are_compared_with_the_reference(
    tmp_path: Path, tiny_model_folder: Callable[[str], str]
) -> None:
    data = Plain(PAIRS)
    data.test_dataloader = data.val_dataloader  # type: ignore[method-assign]
    stage = PolicyStage(ModelConfig(name_or_path=tiny_model_folder("llama")), DPO(), generation=Sampler(6))
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.test(stage, datamodule=data)
    assert trainer.callback_metrics["test/preference/margin"] == 0

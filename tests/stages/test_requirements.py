"""What an algorithm declares is what a run builds, collects and measures: its source of rollouts and its reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.base import Algorithm
from rlhf_lightning.algorithms.distillation import Distillation
from rlhf_lightning.algorithms.dpo import DPO
from rlhf_lightning.algorithms.grpo import GRPO
from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import group_moments
from rlhf_lightning.functional.masked import masked_sum, row_mean
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.models.reference import CopiedReference, ReferenceModel
from rlhf_lightning.rewards import FunctionReward, LengthReward, Reward, WeightedSum
from rlhf_lightning.rollouts.recorded import PolicyCollector
from rlhf_lightning.stages import PolicyStage
from rlhf_lightning.training import roles
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout
from tests.tiny_tokenizers import byte_level

ROWS = [
    {"prompt": "say dog", "chosen": "dog", "rejected": "a cat"},
    {"prompt": "say cat", "chosen": "cat", "rejected": "no"},
    {"prompt": "please", "chosen": "yes", "rejected": "no dog"},
    {"prompt": "thank you", "chosen": "a dog", "rejected": "a cat and a dog"},
]


@dataclass
class Toy(Algorithm):
    """Raise the log-probabilities of every row, and keep the rollouts."""

    prepare_reads_logprobs: ClassVar[bool] = False
    responses_per_prompt: int = 2
    epochs: int = 1
    minibatches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rollouts: list[Rollout] = []

    @property
    def needs_reference(self) -> bool:
        return False

    def prepare(self, rollout: Rollout) -> Batch:
        self.rollouts.append(rollout)
        return Batch.of(rollout)

    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        loss = -masked_sum(output.logprobs, batch.mask)
        return LossOutput(loss, {"loss/policy": (loss.detach(), batch.mask.sum())})


@dataclass
class FromPrompts(Toy):
    learns_from: ClassVar[tuple[str, ...]] = ("prompts",)


@dataclass
class FromPairs(Toy):
    rows_per_loss_group: ClassVar[int] = 2
    learns_from: ClassVar[tuple[str, ...]] = ("pairs",)


@dataclass
class FromLabels(Toy):
    """Learn from the matched rows alone."""

    learns_from: ClassVar[tuple[str, ...]] = ("labels",)

    def prepare(self, rollout: Rollout) -> Batch:
        assert rollout.mismatched is not None
        mask = rollout.mask & ~rollout.mismatched[:, None]
        return replace(super().prepare(rollout), mask=mask)


@dataclass
class Mismatching(FromLabels):
    mismatched_rows: ClassVar[bool] = True


@dataclass
class Greedy(Toy):
    greedy_baseline: ClassVar[bool] = True


@dataclass
class Choosy(Toy):
    """Learn from prompts whose responses differ in their scores."""

    max_refills: int = 2

    def teaches(self, rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
        return group_moments(rewards, groups, valid)[1] > 0


@dataclass
class FromNothing(Toy):
    learns_from: ClassVar[tuple[str, ...]] = ("pears",)


class Rows(LightningDataModule):
    train_rows: list[dict[str, Any]] = ROWS
    validation_rows: list[dict[str, Any]] = ROWS[:2]
    batch_size = 4

    def train_dataloader(self) -> Any:
        return DataLoader(self.train_rows, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader(self.validation_rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]


class Labelled(Rows):
    train_rows = [{"prompt": row["prompt"], "response": row["chosen"], "label": i < 2} for i, row in enumerate(ROWS)]  # noqa: RUF012
    validation_rows = train_rows[:2]


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


def fitted(
    folder: str,
    root: Path,
    algorithm: Algorithm,
    reward: Reward | None = None,
    reference: Any = "none",
    callbacks: tuple[Callback, ...] = (),
    data: Rows | None = None,
    steps: int = 2,
) -> tuple[PolicyStage, set[str]]:
    """Train for two rollouts, and return the stage with the names of all metrics."""
    torch.manual_seed(3)
    stage = PolicyStage(
        ModelConfig(folder),
        algorithm,
        reward,
        reference,
        generation=Sampler(6),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    known: set[str] = set()
    log = stage.metric_log.tell_loggers
    stage.metric_log.tell_loggers = lambda values: (known.update(values), log(values))[1]  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, log_every_n_steps=1, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(stage, datamodule=Rows() if data is None else data)
    assert trainer.global_step == steps * algorithm.minibatches * algorithm.epochs
    return stage, known


def of_reference(metrics: set[str]) -> set[str]:
    return {name for name in metrics if name.endswith(("kl/reference", "reference/gap"))}


@pytest.fixture
def no_reference_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a reference")

    monkeypatch.setattr(roles, "build_reference", refused)
    monkeypatch.setattr(roles.ReferenceCache, "__init__", refused)


def test_a_teacher_is_loaded_and_learned_from(
    folder: str, tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    stage, metrics = fitted(folder, tmp_path, Distillation(), reference=ReferenceModel(tiny_model_folder("gpt2")))
    assert stage.collector is not None
    assert stage.collector.reference is not None
    assert {"kl/reference", "val/kl/reference", "loss/policy"} <= metrics
    assert not metrics & {"reward/mean", "reference/gap"}


def test_recorded_pairs_are_compared_with_the_other_model(
    folder: str, tiny_model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    """Not with a cache that the policy fills."""
    other = ReferenceModel(tiny_model_folder("gpt2"))
    stage, _ = fitted(folder, tmp_path, DPO(), reference=other, steps=2)
    assert stage.collector is not None
    assert isinstance(stage.collector.reference, CopiedReference)


@pytest.mark.parametrize("reference", ["auto", "full", "none"])
def test_distillation_without_a_teacher_is_one_line(folder: str, reference: Any) -> None:
    with pytest.raises(UserError, match=f"model.reference is {reference}, and Distillation learns from another model"):
        PolicyStage(ModelConfig(folder), Distillation(), reference=reference)


def test_a_teacher_of_another_vocabulary_is_one_line_before_weights_are_loaded(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "load_causal_lm", lambda *_: pytest.fail("weights are loaded"))
    byte_level().save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher, which has another vocabulary than the policy: token \d+ is "):
        fitted(folder, tmp_path, Distillation(), reference=ReferenceModel(str(tmp_path / "teacher")))


@pytest.mark.parametrize("algorithm", [PPO, GRPO])
@pytest.mark.usefixtures("no_reference_is_built")
def test_without_a_kl_penalty_a_run_needs_no_reference(folder: str, tmp_path: Path, algorithm: Any) -> None:
    configured = algorithm(epochs=1, minibatches=1, kl=KLPenalty(coef=0.0))
    stage, metrics = fitted(folder, tmp_path, configured, LengthReward(2))
    assert stage.collector is not None
    assert stage.collector.reference is None
    assert {"reward/mean", "val/reward/mean", "response/length"} <= metrics
    assert not of_reference(metrics)


def test_without_a_kl_penalty_the_reference_changes_no_weight(folder: str, tmp_path: Path) -> None:
    with_, without = (
        fitted(folder, tmp_path, PPO(epochs=2, minibatches=1, kl=KLPenalty(coef=0.0)), LengthReward(2), reference)
        for reference in ("full", "none")
    )
    assert of_reference(with_[1]) == {"kl/reference", "val/kl/reference", "reference/gap"}
    for name, value in with_[0].network.state_dict().items():
        assert torch.equal(without[0].network.state_dict()[name], value), name


@pytest.mark.parametrize("algorithm", [PPO(), GRPO(), DPO()])
def test_an_algorithm_that_reads_a_reference_gets_one(folder: str, algorithm: Algorithm) -> None:
    with pytest.raises(UserError, match=r"model\.reference is none; \w+ compares .* set model\.reference to auto"):
        PolicyStage(ModelConfig(folder), algorithm, LengthReward(2), "none")


def test_a_callback_that_reads_the_reference_is_refused_without_one(folder: str, tmp_path: Path) -> None:
    monitor = EarlyStopping("val/kl/reference", check_on_train_epoch_end=False)
    algorithm = GRPO(responses_per_prompt=2, kl=KLPenalty(coef=0.0))
    with pytest.raises(UserError, match=r"EarlyStopping monitors val/kl/reference, .* set model\.reference to auto"):
        fitted(folder, tmp_path, algorithm, LengthReward(2), callbacks=(monitor,))
    fitted(folder, tmp_path, algorithm, LengthReward(2), "full", (monitor,))


@pytest.mark.usefixtures("no_reference_is_built")
def test_recorded_pairs_without_a_reference_are_compared_by_mean_log_probabilities(folder: str, tmp_path: Path) -> None:
    algorithm = FromPairs()
    stage, metrics = fitted(folder, tmp_path, algorithm)
    assert algorithm.rollouts[0].reference_logprobs is None
    assert not of_reference(metrics)
    assert stage.collector is not None
    held_out = stage.collector.pairs(Rows.validation_rows, None, stage.device)
    means = row_mean(held_out.logprobs, held_out.mask)
    expected = float((means[0::2] - means[1::2]).mean())
    assert float(stage.trainer.callback_metrics["val/preference/margin"]) == pytest.approx(expected, abs=1e-5)
    assert float(stage.trainer.callback_metrics["val/preference/accuracy"]) in (0.0, 0.5, 1.0)


def test_an_algorithm_of_prompts_generates_and_scores_nothing(folder: str, tmp_path: Path) -> None:
    algorithm = FromPrompts()
    _, metrics = fitted(folder, tmp_path, algorithm, reference="full")
    rollout = algorithm.rollouts[0]
    assert len(rollout) == 4 * algorithm.responses_per_prompt
    assert rollout.mask.any(-1).all()
    assert rollout.rewards.eq(0).all()
    reference: Tensor | None = rollout.reference_logprobs
    assert reference is not None
    torch.testing.assert_close(reference, rollout.logprobs, atol=1e-4, rtol=0)  # both are the initial model
    assert {"kl/reference", "response/length", "val/kl/reference"} <= metrics
    assert not {name for name in metrics if "reward" in name}


@pytest.mark.parametrize(
    ("algorithm", "reward", "message"),
    [
        (PPO(), None, r"PPO learns from rewards and there is none: set model\.reward"),
        (
            FromPrompts(),
            LengthReward(2),
            r"model\.reward is LengthReward; FromPrompts learns from prompts and reads no reward",
        ),
        (FromPairs(), LengthReward(2), r"FromPairs learns from pairs .* set model\.reward to null"),
        (FromNothing(), None, r"FromNothing\.learns_from holds 'pears'; it must be of rewards, "),
    ],
)
def test_a_reward_is_given_to_algorithms_that_read_it(
    folder: str, algorithm: Algorithm, reward: Reward | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        PolicyStage(ModelConfig(folder), algorithm, reward)


@dataclass
class Componentwise(Toy):
    needs_components: ClassVar[bool] = True


def test_components_reach_the_algorithm_with_their_weights(folder: str, tmp_path: Path) -> None:
    algorithm = Componentwise()
    fitted(
        folder, tmp_path, algorithm, WeightedSum({"short": LengthReward(2), "long": LengthReward(5)}, {"long": 0.25})
    )
    rollout = algorithm.rollouts[0]
    assert rollout.components is not None
    assert rollout.component_weights is not None
    assert rollout.component_weights.tolist() == [[1.0, 0.25]] * len(rollout)
    torch.testing.assert_close((rollout.components * rollout.component_weights).sum(-1), rollout.rewards)


def test_a_reward_that_is_no_weighted_sum_is_refused_where_components_are_read(folder: str) -> None:
    with pytest.raises(UserError, match=r"the reward is LengthReward; Componentwise reads every .* WeightedSum"):
        PolicyStage(ModelConfig(folder), Componentwise(), LengthReward(2))


def test_an_algorithm_of_labels_learns_from_recorded_responses(folder: str, tmp_path: Path) -> None:
    algorithm = FromLabels()
    fitted(folder, tmp_path, algorithm, reference="full", data=Labelled())
    rollout = algorithm.rollouts[0]
    assert rollout.rewards.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert (tmp_path / "reference_logprobs.safetensors").is_file()
    assert rollout.reference_logprobs is not None
    assert rollout.reference_logprobs[rollout.mask].lt(0).all()


def test_held_out_labels_are_told_apart_by_what_the_policy_learned(folder: str, tmp_path: Path) -> None:
    class HeldOut(Labelled):
        validation_rows = Labelled.train_rows

    stage, metrics = fitted(folder, tmp_path, FromLabels(), reference="full", data=HeldOut())
    assert isinstance(stage.collector, PolicyCollector)
    held_out = stage.collector.labels(HeldOut.validation_rows, None, stage.device)
    assert held_out.reference_logprobs is not None
    *good, third, fourth = ((held_out.logprobs - held_out.reference_logprobs) * held_out.mask).sum(-1).tolist()
    expected = sum(a > b for a in good for b in (third, fourth)) / 4
    assert float(stage.trainer.callback_metrics["val/label/accuracy"]) == expected
    assert "val/label/accuracy" in metrics


def test_labels_are_even_before_the_policy_learned(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes over the same weights may differ by rounding, in favour of the responses of one label."""
    drift = "rlhf_lightning.stages.policy._row_drift"
    monkeypatch.setattr(drift, lambda labelled: 1e-6 * labelled.rewards)

    class HeldOut(Labelled):
        validation_rows = Labelled.train_rows

    torch.manual_seed(3)
    stage = PolicyStage(ModelConfig(folder), FromLabels(), reference="full", generation=Sampler(6))
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    assert trainer.validate(stage, datamodule=HeldOut())[0]["val/label/accuracy"] == 0.5


def test_mismatched_rows_are_marked_and_their_reference_is_a_model(folder: str, tmp_path: Path) -> None:
    algorithm = Mismatching()
    stage, _ = fitted(folder, tmp_path, algorithm, reference="full", data=Labelled())
    rollout = algorithm.rollouts[0]
    assert rollout.mismatched is not None
    assert rollout.mismatched.tolist() == [False, True] * 4
    width = rollout.prompt_mask.shape[1]
    decode = stage.text.encoder.decode
    responses = [text.split("<")[0] for text in decode(rollout.tokens[:, width:], rollout.mask)]
    assert responses[1::2] == responses[2::2] + responses[:1]
    assert not (tmp_path / "reference_logprobs.safetensors").exists()
    batch = stage.collector.labels(Labelled.train_rows, None, stage.device)  # type: ignore[union-attr]
    assert batch.mismatched is not None
    assert not batch.mismatched.any()


def test_rows_without_labels_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"FromLabels has no reward and the train data has no labels .* use LabelledData"
    ):
        fitted(folder, tmp_path, FromLabels())


def test_a_greedy_baseline_reaches_the_algorithm(folder: str, tmp_path: Path) -> None:
    algorithm = Greedy()
    fitted(folder, tmp_path, algorithm, LengthReward(3))
    for rollout in algorithm.rollouts:
        assert rollout.baselines is not None
        assert rollout.baselines.view(4, 2).std(-1).eq(0).all()
        assert len(rollout) == 8


def test_prompts_that_teach_nothing_are_replaced_by_the_next_ones(folder: str, tmp_path: Path) -> None:
    """Of the four prompts the responses to two have scores that differ: a batch of two prompts becomes one, and is refilled."""
    counts: dict[str, int] = {}

    def score(prompts: list[str], responses: list[str]) -> list[float]:
        scores = []
        for prompt in prompts:
            counts[prompt] = counts.get(prompt, 0) + 1
            scores.append(float(counts[prompt] % 2) if prompt.startswith("say") else 0.0)
        return scores

    algorithm, data = Choosy(), Rows()
    data.train_rows, data.batch_size = [ROWS[0], ROWS[2], ROWS[1], ROWS[3]], 2
    stage, metrics = fitted(folder, tmp_path, algorithm, FunctionReward(score), data=data, steps=4)
    assert [len(rollout) for rollout in algorithm.rollouts] == [4] * 4
    assert all(rollout.rewards.view(2, 2).sum(-1).eq(1).all() for rollout in algorithm.rollouts)
    assert stage.collector is not None
    assert stage.collector.metrics["rollout/requests"] == 2
    assert stage.collector.metrics["rollout/responses"] == 8
    assert {"rollout/prompts", "rollout/requests", "rollout/responses"} <= metrics


def test_a_reward_that_tells_nothing_apart_is_one_line(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"learns nothing from any prompt of a rollout of 4, in 3 requests"):
        fitted(folder, tmp_path, Choosy(), FunctionReward(lambda responses: [0.0] * len(responses)))

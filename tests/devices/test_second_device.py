"""Every stage and algorithm on a device that is not the CPU: no tensor, generator or state stays where it does not belong."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from devices import second
from leavings import equal, metrics, weights

pytestmark = pytest.mark.skipif(second.missing() is not None, reason=str(second.missing()))

Fit = Callable[..., dict[str, int]]

TINY = ["--data.size", "4", "--data.validation_size", "2", "--data.batch_size", "2", "--trainer.max_epochs", "1"]
ROLLOUTS = [*TINY, "--model.generation.max_new_tokens", "4", "--trainer.val_check_interval", "1.0"]
PPO = ["--config", "ppo.yaml", "--model.algorithm.epochs", "1", "--model.algorithm.minibatches", "2"]
FULL = ["--model.reference", "full"]
UNMEASURED = ["--trainer.limit_val_batches", "0"]
LORA = '{"r": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}'
LENGTH = """
def shorter(responses):
    return [-len(response) for response in responses]
"""
CALLBACKS = """
trainer:
  callbacks:
    - class_path: Checkpoints
      init_args: {every_n_steps: 1, keep: 100}
    - class_path: WinRate
"""


@pytest.fixture(scope="module")
def there() -> Iterator[ProcessPoolExecutor]:
    """A process of its own, as the device cannot be taken back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), second.register) as pool:
        yield pool


@pytest.fixture(scope="module")
def fit(there: ProcessPoolExecutor) -> Fit:
    """`second.fit` in that process."""
    return lambda *args, **kwargs: there.submit(second.fit, *args, **kwargs).result()


@pytest.fixture(scope="module")
def model(tiny_model_folder: Callable[..., str]) -> str:
    """A folder with a tiny language model."""
    return tiny_model_folder("llama")


@pytest.fixture(scope="module")
def reward_words(model: str) -> list[str]:
    """A reward model that is an adapter of it."""
    words = [
        "--config",
        "reward.yaml",
        "--model.model.name_or_path",
        model,
        "--model.model.lora",
        '{"r": 2, "alpha": 4, "target_modules": ["q_proj"]}',
    ]
    return [*words, "--model.calibrate", "true", *TINY]


@pytest.fixture(scope="module")
def reward(fit: Fit, reward_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that trained it on the device."""
    folder = tmp_path_factory.mktemp("reward")
    fit(folder, *reward_words)
    return folder


def alike(there: Path, here: Path) -> None:
    """Both runs measured the same, but for rounding."""
    rows = [[{name: float(x) for name, x in row.items() if x} for row in metrics(folder)] for folder in (there, here)]
    assert len(rows[0]) > 1
    for row, same in zip(*rows, strict=True):
        assert row == pytest.approx(same, rel=1e-3, abs=1e-4)


def test_the_reward_stage_measures_what_it_measures_on_the_cpu(
    fit: Fit, reward: Path, reward_words: list[str], tmp_path: Path
) -> None:
    fit(tmp_path, *reward_words, there=False)
    alike(reward, tmp_path)


def test_the_supervised_stage_measures_what_it_measures_on_the_cpu(fit: Fit, model: str, tmp_path: Path) -> None:
    source = f'{{"name_or_path": "{model}", "config": null, "max_tokens_per_batch": 60}}'
    words = ["--config", "sft.yaml", "--model.model", source, *ROLLOUTS, "--trainer.check_val_every_n_epoch", "1"]
    for there in (True, False):
        fit(tmp_path / str(there), *words, there=there)
    alike(tmp_path / "True", tmp_path / "False")


POLICIES = {
    "ppo": [*PPO, *FULL, "--model.policy.max_tokens_per_batch", "60", "--model.policy.gradient_checkpointing", "true"],
    "ppo_apart": [*PPO, *FULL, "--model.critic", "separate", "--model.policy.pack", "false", *UNMEASURED],
    "grpo": ["--config", "grpo.yaml", *FULL, "--model.generation.continuous_batching", "false", *UNMEASURED],
    "dpo": ["--config", "dpo.yaml", *FULL, "--model.generation", "TransformersGenerate", *UNMEASURED],
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_learns_from_what_it_writes(name: str, fit: Fit, model: str, reward: Path, tmp_path: Path) -> None:
    words = [
        *POLICIES[name],
        "--model.reward.name_or_path",
        str(reward / "export"),
        *ROLLOUTS,
        "--model.iterations",
        "1",
    ]
    fit(tmp_path, *words, "--model.policy.name_or_path", model)
    assert weights(tmp_path / "export")


def test_rewards_are_asked_beside_writing(fit: Fit, model: str, tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(LENGTH)
    asked = f'{{"class_path": "FunctionReward", "init_args": {{"function": "{tmp_path}/length.py:shorter", "timeout": 60}}}}'
    words = [
        "--config",
        "reinforce.yaml",
        *FULL,
        "--model.reward",
        asked,
        "--model.overlap",
        "2",
        *ROLLOUTS,
        *UNMEASURED,
    ]
    fit(tmp_path, *words, "--model.policy.name_or_path", model, "--model.iterations", "1")
    assert weights(tmp_path / "export")


def test_a_policy_learns_from_recorded_pairs(fit: Fit, model: str, tmp_path: Path) -> None:
    fit(tmp_path, "--config", "dpo_offline.yaml", "--model.policy.name_or_path", model, *ROLLOUTS)
    assert weights(tmp_path / "export")


def test_four_roles_on_one_base_go_on_bit_for_bit(fit: Fit, model: str, reward: Path, tmp_path: Path) -> None:
    (tmp_path / "callbacks.yaml").write_text(CALLBACKS)
    words = [
        *PPO,
        "--config",
        str(tmp_path / "callbacks.yaml"),
        "--model.critic",
        "separate",
        "--model.policy.lora",
        LORA,
    ]
    words += ["--model.policy.name_or_path", model, "--model.reward.name_or_path", str(reward / "export")]
    words += [*ROLLOUTS, "--model.iterations", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    fit(whole, *words)
    fit(resumed, *words, "--ckpt_path", str(whole / "checkpoints/step-1.ckpt"))
    assert equal(weights(resumed / "export"), weights(whole / "export"))
    assert "val/win_rate" in metrics(whole)[-1]


def test_the_host_waits_once_for_each_step_of_writing(there: ProcessPoolExecutor, model: str) -> None:
    few, many = (there.submit(second.waits_of_writing, model, tokens).result() for tokens in (4, 20))
    assert many - few == 16

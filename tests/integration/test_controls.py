"""Controls that every gain is held against: nothing learned where nothing can be, and one word that swaps the algorithm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from algorithm_kinds import HAVE_CLIPPED, OF_PAIRS, OF_REWARDS, OFFLINE_RUNS
from leavings import ROLLOUTS, SMALL, column, equal, metrics, weights

from rlhf_lightning.models.loading import resolve_path


@pytest.mark.parametrize("algorithm", ["PPO", "DPO"])
def test_learning_rate_0_changes_nothing(algorithm: str, run: Callable[..., Path]) -> None:
    still = ["--model.optimizer.lr", "0", "--model.reference", "full", "--model.algorithm", algorithm]
    folder = run("still", "fit", "--config", "ppo.yaml", *still, *SMALL, *ROLLOUTS)
    exported = {name: x for name, x in weights(folder / "export").items() if not name.startswith("critic")}
    assert equal(exported, weights(Path(resolve_path("playground/sft"))))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val/reward/true"]["before"] > 0
    assert all(values["before"] == values["after"] for values in summary.values())
    assert column(folder, "val/kl/reference") == [0.0] * 3
    assert column(folder, "reference/gap") == [0.0]
    assert max(column(folder, "optimizer/grad_norm")) > 0  # there was something to learn

    moved = run("moved", "fit", "--config", "ppo.yaml", *still[2:], *SMALL, *ROLLOUTS)
    assert not equal(weights(moved / "export"), weights(folder / "export"))


@pytest.mark.parametrize("algorithm", [kind.__name__ for kind in OF_REWARDS])
def test_one_word_swaps_the_algorithm(algorithm: str, run: Callable[..., Path]) -> None:
    folder = run("out", "fit", "--config", "ppo.yaml", "--model.algorithm", algorithm, *SMALL, *ROLLOUTS)
    assert len(column(folder, "reward/mean")) == 2
    assert len(column(folder, "val/reward/true")) == 3
    logged = set(metrics(folder)[-1])
    assert ("loss/value" in logged) == (algorithm == "PPO")
    assert ("preference/accuracy" in logged) == (algorithm in {kind.__name__ for kind in OF_PAIRS})
    assert ("policy/clip_fraction" in logged) == (algorithm in {kind.__name__ for kind in HAVE_CLIPPED})


@pytest.mark.parametrize("name", OFFLINE_RUNS)
def test_one_word_swaps_the_algorithm_of_recorded_pairs(name: str, run: Callable[..., Path]) -> None:
    """On the playground held-out accuracy rises, or the true reward where there are no pairs, whatever the seed."""
    for seed in ("0", "1"):
        words = [*OFFLINE_RUNS[name], "--seed_everything", seed, "--data.size", "256", "--data.validation_size", "64"]
        folder = run(
            f"{name} {seed}", "fit", *words, "--trainer.max_epochs", "3", "--trainer.val_check_interval", "1.0"
        )
        measured = column(folder, "val/preference/accuracy") or column(folder, "val/reward/true")
        assert measured[-1] > measured[0] + 0.05, (seed, measured)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_ratio_tells_the_numerics_that_write_from_those_that_train(
    dtype: str, run: Callable[..., Path]
) -> None:
    folder = run("out", "fit", "--config", "grpo.yaml", "--model.policy.dtype", dtype, *SMALL, *ROLLOUTS)
    gaps = [ratio - 1 for ratio in column(folder, "policy/ratio_first")]
    assert len(gaps) == 2
    assert max(gaps) < 2e-5 if dtype == "float32" else 1e-4 < max(gaps) < 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["PPO", "DPO"])
def test_a_random_reward_leaves_the_true_one_within_noise(algorithm: str, run: Callable[..., Path]) -> None:
    words = ["--model.reward", "RandomReward", "--model.algorithm", algorithm, "--model.iterations", "20"]
    folder = run("noise", "fit", "--config", "ppo.yaml", *words)
    true = json.loads((folder / "summary.json").read_text())["val/reward/true"]
    assert abs(true["after"] - true["before"]) < 0.25 * (true["best"] - true["before"])


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_a_step_of_fewer_parts_at_the_end_of_an_epoch_is_logged_too(name: str, run: Callable[..., Path]) -> None:
    words = ["--config", f"{name}.yaml", *SMALL, "--trainer.accumulate_grad_batches", "3", "--trainer.max_epochs", "2"]
    whole = run("whole", "fit", *words)  # four batches an epoch: three of a step, and one
    assert [int(row["step"]) for row in metrics(whole) if row["loss/policy"]] == [1, 2, 3, 4]

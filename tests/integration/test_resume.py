"""A run that is stopped anywhere and goes on is bit for bit the run that was not stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from random import Random

import pytest
from algorithm_kinds import OFFLINE_RUNS, ONLINE_RUNS
from combinations import SEEDS, drawn
from leavings import ROLLOUTS, SMALL, column, differing, equal, lines, metrics, weights

from rlhf_lightning.__main__ import main
from rlhf_lightning.run.last_checkpoint import newest_complete
from tests.ties import REFILLED

CHECKPOINTS = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {dirpath: %s, filename: '{step}', every_n_train_steps: 1, save_top_k: -1, save_on_train_epoch_end: false}
"""
PPO = ["--config", "ppo.yaml", "--model.algorithm.epochs", "2", "--model.algorithm.minibatches", "2"]
RUNS = {
    "ppo": ([*PPO, *ROLLOUTS], 4),
    "ppo_accumulated": ([*PPO, *ROLLOUTS, "--trainer.accumulate_grad_batches", "2"], 4),
    "ppo_in_pieces": ([*PPO, *ROLLOUTS, "--model.policy.max_tokens_per_batch", "60"], 4),
    "ppo_two_epochs": ([*PPO, "--trainer.max_epochs", "2", "--model.iterations", "1"], 4),
    "ppo_adaptive": ([*PPO, *ROLLOUTS, "--model.algorithm.kl.target", "0.05"], 4),
    "ppo_stopped": ([*PPO, *ROLLOUTS, "--model.algorithm.update_kl_limit", "0.01"], 4),
    "eight_bits": ([*PPO, *ROLLOUTS, "--model.optimizer", "bitsandbytes.optim.AdamW8bit"], 4),
    "refilled": ([*REFILLED, *ROLLOUTS], 4),
    "lora": ([*PPO, "--config", "lora.yaml", *ROLLOUTS], 4),
    "dpo": (["--config", "dpo.yaml", *ROLLOUTS, "--model.algorithm.epochs", "3"], 3),
    "dpo_offline": (["--config", "dpo_offline.yaml"], 4),
    "sft": (["--config", "sft.yaml", "--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "1"], 4),
    "sft_seldom": (["--config", "sft.yaml", "--trainer.log_every_n_steps", "3", "--trainer.max_epochs", "3"], 4),
    "sft_accumulated": (
        ["--config", "sft.yaml", "--trainer.accumulate_grad_batches", "3", "--trainer.max_epochs", "4"],
        4,
    ),
    "reward": (["--config", "reward.yaml", "--trainer.max_epochs", "2", "--trainer.val_check_interval", "0.5"], 4),
    **{name: (words, 4) for name, words in OFFLINE_RUNS.items()},
    **{name: ([*words, "--trainer.val_check_interval", "0.5"], 4) for name, words in ONLINE_RUNS.items()},
}
"""A command line, and the step at which a rollout or an epoch of it is used up."""
SLOW = (
    *OFFLINE_RUNS,
    *ONLINE_RUNS,
    "eight_bits",
    "lora",
    "ppo_adaptive",
    "ppo_in_pieces",
    "ppo_two_epochs",
    "reward",
    "sft_seldom",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(RUNS)])
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(name: str, run: Callable[..., Path]) -> None:
    words, boundary = RUNS[name]
    Path("checkpoints.yaml").write_text(CHECKPOINTS % "whole/checkpoints")
    whole = run("whole", "fit", *words, "--config", "checkpoints.yaml", *SMALL)
    steps = int(metrics(whole)[-1]["step"])
    for step in (boundary - 1, boundary, boundary + 1):
        _goes_on(whole, step, [*words, *SMALL], run)
    assert steps > boundary + 1
    if name == "refilled":
        assert max(column(whole, "rollout/requests")) > 1


def _rows(folder: Path, step: int) -> list[dict[str, str]]:
    """metrics.csv; a checkpoint written by `every_n_train_steps` precedes its step's validation, which Lightning leaves out."""
    pending = [{k: v for k, v in row.items() if row["step"] != str(step) or "val/" not in k} for row in metrics(folder)]
    filled = [{name: value for name, value in row.items() if value} for row in pending]
    return [row for row in filled if row.keys() != {"step"}]


def _goes_on(whole: Path, step: int, words: list[str], run: Callable[..., Path]) -> None:
    """Stopped after `step`: its folder as it was then, further rows included that were written before it was killed."""
    folder = Path(f"stopped-{step}")
    folder.mkdir()
    shutil.copyfile(whole / "metrics.csv", folder / "metrics.csv")
    checkpoint = whole / "checkpoints" / f"step={step}.ckpt"
    resumed = run(str(folder), "fit", *words, "--ckpt_path", str(checkpoint))
    assert equal(weights(resumed / "export"), weights(whole / "export")), step
    assert _rows(resumed, step) == _rows(whole, step), step
    before = {name: row["before"] for name, row in json.loads((whole / "summary.json").read_text()).items()}
    assert {n: row["before"] for n, row in json.loads((resumed / "summary.json").read_text()).items()} == before


def test_a_run_does_not_go_on_with_an_algorithm_of_other_weights(
    run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run("out", "fit", *RUNS["ppo"][0], *SMALL, "--trainer.max_steps", "1")
    words = [
        "fit",
        "--config",
        "ppo.yaml",
        *SMALL,
        "--model.algorithm",
        "REINFORCE",
        "--trainer.default_root_dir",
        "out",
    ]
    assert main([*words, "--ckpt_path", "last"]) == 2
    assert "model.algorithm.class_path is rlhf_lightning.REINFORCE, and the run" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "before"), [("dpo", 0), ("ppo", 0), ("ppo", 1), ("sft", 0), ("sft_seldom", 2)])
def test_a_run_that_ended_by_max_steps_is_extended_from_its_last_checkpoint(
    name: str, before: int, run: Callable[..., Path]
) -> None:
    words, boundary = RUNS[name]
    whole = run("whole", "fit", *words, *SMALL)
    ended = run("extended", "fit", *words, *SMALL, "--trainer.max_steps", str(boundary - before))
    assert metrics(ended)[-1]["step"] == str(boundary - before)
    assert metrics(ended)[-1]["loss/policy"]  # also of what is not a whole rollout, or not the turn of a row
    last = ["--ckpt_path", "extended/checkpoints/last.ckpt"]
    extended = run("extended", "fit", *words, *SMALL, *last)
    assert equal(weights(extended / "export"), weights(whole / "export"))
    assert metrics(extended) == metrics(whole)
    assert lines(extended / "samples.jsonl") == lines(whole / "samples.jsonl")
    assert (extended / "summary.json").read_text() == (whole / "summary.json").read_text()


def test_a_run_that_was_stopped_after_its_last_checkpoint_has_its_summary(run: Callable[..., Path]) -> None:
    words = ["--config", "reinforce.yaml", *SMALL, *ROLLOUTS]
    whole = run("whole", "fit", *words)
    summary = (whole / "summary.json").read_text()
    assert json.loads(summary)["val/reward/mean"]["after"] is not None
    (whole / "summary.json").unlink()
    run("whole", "fit", *words, "--ckpt_path", "last")
    assert (whole / "summary.json").read_text() == summary


@pytest.mark.parametrize("config", ["reinforce.yaml", "sft.yaml"])
def test_what_is_measured_of_a_checkpoint_is_of_its_step(config: str, run: Callable[..., Path]) -> None:
    words = ["--config", config, *SMALL, "--trainer.val_check_interval", "1.0", "--trainer.max_epochs", "2"]
    folder = run("out", "fit", *words, "--trainer.check_val_every_n_epoch", "1")
    steps = [row["step"] for row in metrics(folder)]
    generated = [row["step"] for row in lines(folder / "samples.jsonl")]
    assert steps[-1] == str(generated[-1]) != "0"
    run("out", "validate", *words, "--ckpt_path", "last")
    assert [row["step"] for row in metrics(folder)] == steps
    assert [row["step"] for row in lines(folder / "samples.jsonl")] == generated


def test_a_run_that_began_anew_does_not_go_on_with_an_earlier_one(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", "reinforce.yaml", *SMALL, *ROLLOUTS]
    checkpoints = run("out", "fit", *words) / "checkpoints"
    kept = {path.name for path in checkpoints.glob("step-*.ckpt")}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lightning.training.rollout_session.RolloutSession.collect", interrupted)
        assert main(["fit", *words, "--trainer.default_root_dir", "out"]) == 130
    assert newest_complete(checkpoints) == (None, [])
    assert {path.name for path in (checkpoints / "earlier").iterdir()} == kept  # nothing is lost until there is another
    run("out", "fit", *words, "--ckpt_path", "last")
    assert {path.name for path in checkpoints.iterdir()} == {*kept, "last.ckpt"}


STOP = """
from lightning.pytorch import Callback


class Stop(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step == 3
"""


def test_a_run_that_a_callback_ended_within_an_epoch_is_extended(run: Callable[..., Path]) -> None:
    # else Lightning validates before it ends
    words = [*RUNS["ppo"][0], *SMALL, "--trainer.check_val_every_n_epoch", "2"]
    whole = run("whole", "fit", *words)
    Path("stop.py").write_text(STOP)
    run("extended", "fit", *words, "--trainer.callbacks+", "stop.Stop")
    assert Path("extended/checkpoints/step-3.ckpt").exists()
    extended = run("extended", "fit", *words, "--ckpt_path", "extended/checkpoints/last.ckpt")
    assert equal(weights(extended / "export"), weights(whole / "export"))
    assert metrics(extended) == metrics(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_options_drawn_at_random_go_together(seed: int, run: Callable[..., Path]) -> None:
    random = Random(seed)
    words = drawn(random)
    whole = run("whole", "fit", *words)
    assert all(isfinite(float(value)) for row in metrics(whole) for value in row.values() if value)
    if (steps := int(metrics(whole)[-1]["step"])) > 1:
        run("extended", "fit", *words, "--trainer.max_steps", str(random.randint(1, steps - 1)))
        extended = run("extended", "fit", *words, "--ckpt_path", "extended/checkpoints/last.ckpt")
        assert differing(whole, extended) == []
        assert equal(weights(extended / "export"), weights(whole / "export"))

"""Every stage and algorithm on two processes, whole and sharded, full and LoRA: trains, validates, saves, resumes, exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from algorithm_kinds import OFFLINE_RUNS, ONLINE_RUNS
from combinations import SEEDS, drawn
from leavings import differing, equal, lines, metrics, weights
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lightning.__main__ import main

pytestmark = pytest.mark.distributed

DATA = ["--data.size", "16", "--data.validation_size", "7", "--data.batch_size", "4"]
ROLLOUTS = ["--model.iterations", "3", "--trainer.val_check_interval", "1.0"]
READING = ["--model.generation", "tests.holes.ReadingSampler"]
RUNS = {
    "ppo": [
        *["--config", "ppo.yaml", *ROLLOUTS, "--model.algorithm.minibatches", "1"],
        *["--model.generation.max_batch_size", "3"],  # rows wait, and ranks compute prompts at different times
    ],
    "ppo_with_holes": [
        *["--config", "ppo.yaml", *ROLLOUTS, "--model.algorithm.minibatches", "1", *READING],
        *["--model.algorithm.bootstrap_truncated", "true", "--model.generation.max_new_tokens", "8"],
    ],
    "reinforce": ["--config", "reinforce.yaml", *ROLLOUTS],
    "grpo": ["--config", "grpo.yaml", *ROLLOUTS],
    "dpo": ["--config", "dpo.yaml", *ROLLOUTS],
    "dpo_offline": ["--config", "dpo_offline.yaml", "--trainer.val_check_interval", "1.0"],
    "sft": ["--config", "sft.yaml", "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"],
    "reward": ["--config", "reward.yaml"],
    **{name: [*words, "--trainer.val_check_interval", "1.0"] for name, words in (OFFLINE_RUNS | ONLINE_RUNS).items()},
}
SAVING = """
trainer:
  callbacks:
    - class_path: Checkpoints
      init_args: {every_n_steps: 1, keep: 100}
"""
OFTEN = [
    *((name, "fsdp", False) for name in ("ppo", "dpo", "dpo_offline", "sft", "reward")),
    *((name, "ddp", False) for name in ("ppo", "ppo_with_holes", "reinforce", "dpo_offline", "sft", "reward")),
    # what an adapter changes on several processes does not depend on what is learned, but for recorded rows
    *((name, strategy, True) for name in ("ppo", "sft") for strategy in ("ddp", "fsdp")),
]
EVERY = [
    pytest.param(name, strategy, lora, marks=[pytest.mark.slow] * ((name, strategy, lora) not in OFTEN))
    for name in RUNS
    for strategy in ("ddp", "fsdp")
    for lora in (False, True)
]


@pytest.mark.parametrize(("name", "strategy", "lora"), EVERY)
def test_a_run_trains_measures_saves_resumes_and_exports(
    name: str, strategy: str, lora: bool, pair: object, run_on_two: Callable[..., Path]
) -> None:
    folder = f"{name}-{strategy}-{'lora' if lora else 'full'}"
    Path(pair.folder / "saving.yaml").write_text(SAVING)  # type: ignore[attr-defined]
    words = ["fit", *RUNS[name], "--config", f"{strategy}.yaml", *DATA, "--config", "saving.yaml"]
    if lora:
        kind = "policy" if name not in ("sft", "reward") else "model"
        words += [f"--model.{kind}.lora", '{"r": 4, "alpha": 8}']
    whole = run_on_two(folder, *words)
    rows = metrics(whole)
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert any(row.get("val/loss/policy") or row.get("val/response/length") for row in rows)
    assert float(rows[-1]["optimizer/grad_norm"]) > 0
    middle = steps[-1] // 2
    resumed = run_on_two(f"{folder}-resumed", *words, "--ckpt_path", str(whole / f"checkpoints/step-{middle}.ckpt"))
    first, second = weights(whole / "export"), weights(resumed / "export")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)
    assert _from(middle, resumed) == [pytest.approx(row, rel=1e-3, abs=1e-5) for row in _from(middle, whole)]
    if lora and name == "sft":  # the base began from a config and exists nowhere else
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(whole / "export/base"), str(whole / "export")
        )
        assert all(p.isfinite().all() for p in adapted.parameters())
    if not lora:
        auto = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
        assert all(p.isfinite().all() for p in auto.from_pretrained(whole / "export").parameters())
    if name != "reward":
        assert len({row["prompt"] for row in lines(whole / "samples.jsonl")}) == 7  # those of both processes
    assert json.loads((whole / "summary.json").read_text())


def _from(step: int, folder: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv from a checkpoint on, which was written before the validation of its step."""
    rows = [
        {
            name: float(value)
            for name, value in row.items()
            if value and (row["step"] != str(step) or "val/" not in name)
        }
        for row in metrics(folder)
        if int(row["step"]) >= step
    ]
    found = [row for row in rows if row.keys() != {"step"}]
    assert found
    return found


@pytest.mark.parametrize("kind", [pytest.param("nf4", marks=pytest.mark.slow), "int8"])
def test_an_adapter_on_a_quantised_base_that_is_not_cut_goes_on(kind: str, run_on_two: Callable[..., Path]) -> None:
    words = ["fit", *RUNS["reinforce"], "--config", "fsdp.yaml", *DATA, "--model.iterations", "2"]
    words += ["--config", "qlora.yaml", "--model.policy.quantization", kind]
    whole = run_on_two(f"quantised-{kind}", *words)
    run_on_two(f"quantised-{kind}-resumed", *words, "--trainer.max_steps", "1")
    resumed = run_on_two(f"quantised-{kind}-resumed", *words, "--ckpt_path", "last")
    first, second = weights(whole / "export"), weights(resumed / "export")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_four_roles_on_one_base_go_on_and_leave_their_adapters(
    strategy: str, pair: object, run_on_two: Callable[..., Path]
) -> None:
    lora = '{"r": 4, "alpha": 8}'
    reward = run_on_two(
        *(f"roles-reward-{strategy}", "fit", "--config", "reward.yaml", "--config", f"{strategy}.yaml", *DATA),
        *("--model.model.lora", lora, "--trainer.limit_val_batches", "0"),
    )
    Path(pair.folder / "saving.yaml").write_text(SAVING)  # type: ignore[attr-defined]
    words = ["fit", *RUNS["ppo"], "--config", f"{strategy}.yaml", *DATA, "--config", "saving.yaml"]
    words += ["--model.policy.lora", lora, "--model.critic", "separate"]
    words += ["--model.reward.name_or_path", str(reward / "export")]
    whole = run_on_two(f"roles-{strategy}", *words)
    said = (pair.folder / "said.0").read_text()  # type: ignore[attr-defined]
    assert f"the reward model {reward}/export shares the policy's base" in said
    own = run_on_two(f"roles-{strategy}-own", *words, "--model.share_base", "false")
    columns = ("reward/mean", "loss/value", "val/reward/mean", "policy/clip_fraction")
    compared = [[{n: float(row[n]) for n in columns if row.get(n)} for row in metrics(run)] for run in (whole, own)]
    assert any("loss/value" in row for row in compared[0])
    assert compared[0] == [pytest.approx(row, rel=1e-3, abs=1e-4) for row in compared[1]]
    middle = int(metrics(whole)[-1]["step"]) // 2
    checkpoint = str(whole / f"checkpoints/step-{middle}.ckpt")
    resumed = run_on_two(f"roles-{strategy}-resumed", *words, "--ckpt_path", checkpoint)
    first, second = weights(whole / "export"), weights(resumed / "export")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)
    assert sum("critic/" in key for key in first) == 2 + sum("adapter_model/" in key for key in first)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("ppo", "ddp"),
        ("ppo", "fsdp"),
        ("ppo_with_holes", "fsdp"),
        ("reward", "ddp"),
        ("sft", "fsdp"),
        ("dpo_offline", "fsdp"),
    ],
)
def test_pieces_of_a_pass_change_nothing(name: str, strategy: str, run_on_two: Callable[..., Path]) -> None:
    kind = "model" if name in ("sft", "reward") else "policy"
    words = ["fit", *RUNS[name], "--config", f"{strategy}.yaml", *DATA, "--trainer.limit_val_batches", "0"]
    words += ["--trainer.accumulate_grad_batches", "2"] if name.startswith("ppo") else []
    limit = f"--model.{kind}.max_tokens_per_batch"
    whole, cut = [run_on_two(f"{name}-{strategy}-{tokens}", *words, limit, tokens) for tokens in ("null", "60")]
    first, second = weights(whole / "export"), weights(cut / "export")
    assert all((first[key] - second[key]).norm() <= 1e-4 * first[key].norm() for key in first)
    norms = [[float(row["optimizer/grad_norm"]) for row in metrics(run)[:-1]] for run in (whole, cut)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_rest_of_a_rollout_is_skipped_on_both(strategy: str, run_on_two: Callable[..., Path]) -> None:
    words = ["fit", *RUNS["ppo"], "--config", f"{strategy}.yaml", *DATA, "--trainer.limit_val_batches", "0"]
    words += ["--model.policy.max_tokens_per_batch", "60"]
    often = ["--model.algorithm", "tests.stopping.StopsAtOnce", "--model.algorithm.epochs", "3"]
    stopped = run_on_two(f"stopped-{strategy}", *words, *often)
    once = run_on_two(f"once-{strategy}", *words, "--model.algorithm.epochs", "1")
    first, second = weights(stopped / "export"), weights(once / "export")
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)
    assert [int(row["step"]) for row in metrics(stopped)] == [3 * int(row["step"]) for row in metrics(once)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_options_drawn_at_random_go_together(seed: int, run_on_two: Callable[..., Path]) -> None:
    random = Random(seed)
    words = ["fit", *drawn(random), "--config", random.choice(["ddp.yaml", "fsdp.yaml"])]
    whole = run_on_two(f"drawn-{seed}", *words)
    if (steps := int(metrics(whole)[-1]["step"])) > 1:
        run_on_two(f"drawn-{seed}-extended", *words, "--trainer.max_steps", str(random.randint(1, steps - 1)))
        last = f"drawn-{seed}-extended/checkpoints/last.ckpt"
        extended = run_on_two(f"drawn-{seed}-extended", *words, "--ckpt_path", last)
        assert differing(whole, extended) == []
        assert equal(weights(extended / "export"), weights(whole / "export"))


def test_two_processes_leave_one_file_of_predictions_in_the_order_of_the_data(
    run_on_two: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", "--config", "ppo.yaml", "--data.size", "8", "--data.validation_size", "7"]
    words += [
        "--data.validation_batch_size",
        "3",
        "--model.predict_responses",
        "2",
        "--model.predict_temperature",
        "1.0",
    ]
    two = run_on_two("predicted", *words, "--config", "ddp.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--trainer.default_root_dir", "alone", "--trainer.enable_progress_bar", "false"]) == 0
    assert [path.name for path in sorted(two.glob("predictions*"))] == ["predictions.jsonl"]
    assert (two / "predictions.jsonl").read_text() == Path("alone/predictions.jsonl").read_text()

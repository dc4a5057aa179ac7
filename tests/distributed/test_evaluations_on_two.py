"""Evaluations on two processes: user code on one of them, requests on both; nothing hangs, whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_cases import FAILING, WORKING, write
from leavings import column, equal, lines, metrics, weights

pytestmark = pytest.mark.distributed

PPO = [
    *["fit", "--config", "ppo.yaml", "--data.size", "16", "--data.validation_size", "7", "--data.batch_size", "4"],
    *["--model.iterations", "2", "--trainer.val_check_interval", "0.5", "--model.algorithm.minibatches", "1"],
]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_failure_costs_a_line_and_nothing_else(
    strategy: str, pair: object, run_on_two: Callable[..., Path]
) -> None:
    folder: Path = pair.folder  # type: ignore[attr-defined]
    words = [*PPO, "--config", f"{strategy}.yaml"]
    plain = metrics(run_on_two(f"plain-{strategy}", *words))
    before = [len((folder / f"said.{rank}").read_text()) for rank in range(2)]
    more = "    - class_path: EarlyStopping\n      init_args: {monitor: val/sometimes, mode: max, patience: 1}\n"
    out = run_on_two(f"evaluated-{strategy}", *words, "--config", write(folder, *FAILING, *WORKING, more=more))
    said = [(folder / f"said.{rank}").read_text()[start:] for rank, start in enumerate(before)]
    failures = [line for line in said[0].splitlines() if line.startswith("evaluation ")]
    assert len(failures) == 3 * len(FAILING) - 1
    assert not [line for line in said[1].splitlines() if line.startswith("evaluation ")]
    measured = metrics(out)
    assert [{name: row[name] for name in plain[0]} for row in measured] == plain
    assert column(out, "val/slept") == [2, 2, 2]
    assert column(out, "val/greedy/count") == [14, 14, 14]
    assert max(column(out, "val/greedy/gap")) < 1e-4
    assert column(out, "val/rollouts") == [0, 1, 2]
    assert len(lines(out / "tables" / "greedy.jsonl")) == 42


def test_a_metric_stops_both(pair: object, run_on_two: Callable[..., Path]) -> None:
    more = "    - class_path: EarlyStopping\n      init_args: {monitor: val/falls, mode: max, patience: 1}\n"
    config = write(pair.folder, "Falls", more=more)  # type: ignore[attr-defined]
    words = [*PPO, "--model.iterations", "6", "--trainer.val_check_interval", "4", "--config", config]
    assert len(column(run_on_two("stopped", *words), "val/falls")) == 3


@pytest.mark.parametrize(("name", "message"), [("Raises", "KeyError: 'no such column'"), ("HookRaises", "in the hook")])
def test_a_strict_failure_ends_both(name: str, message: str, pair: object) -> None:
    folder: Path = pair.folder  # type: ignore[attr-defined]
    config = write(folder, name)
    (folder / config).write_text((folder / config).read_text() + "      init_args: {strict: true}\n")
    words = [*PPO, "--config", config, "--trainer.default_root_dir", f"strict-{name}"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    assert pair.run(*words) == [2, 2]  # type: ignore[attr-defined]
    assert message in pair.said(0) + pair.said(1)  # type: ignore[attr-defined]


CALLBACKS = """
trainer:
  callbacks:
    - class_path: SampleTable
    - class_path: WinRate
      init_args: {against: reference, score: reward/true}
    - class_path: OverOptimization
      init_args: {action: keep_best}
    - class_path: RewardModelHealth
      init_args: {judge: reward/true}
    - class_path: Robustness
      init_args: {kinds: [typos], prompts: 3}
    - class_path: TokenAttribution
      init_args: {prompts: 3, steps: 2}
    - class_path: KeepBest
      init_args: {monitor: win_rate, folder: winner}
"""


def test_the_evaluations_of_the_package(pair: object, run_on_two: Callable[..., Path]) -> None:
    folder: Path = pair.folder  # type: ignore[attr-defined]
    (folder / "callbacks.yaml").write_text(CALLBACKS)
    before = len((folder / "said.0").read_text()) if (folder / "said.0").exists() else 0
    out = run_on_two("callbacks", *PPO, "--config", "fsdp.yaml", "--config", "callbacks.yaml")
    failures = [
        line for line in (folder / "said.0").read_text()[before:].splitlines() if line.startswith("evaluation ")
    ]
    assert failures == []
    for name in ("win_rate", "reward_model/agreement", "robustness/typos/similarity", "token_attribution/largest"):
        assert len(column(out, f"val/{name}")) == 3
    tokens = lines(out / "tables" / "policy_tokens.jsonl")
    assert {token["sample"] for token in tokens} == {0, 1, 2}
    assert {path.name for path in (out / "winner").iterdir()} >= {"config.json", "model.safetensors"}


EXPORTS = """
from rlhf_lightning import Evaluation
from rlhf_lightning.evaluation import ExportRequest

class Exports(Evaluation):
    def evaluate(self, results, ask):
        folder = results.folder / "asked"
        assert ask(ExportRequest(str(folder / str(results.step)))) == []
        ask(ExportRequest(str(results.folder / "config.yaml" / "export")))  # below a file
        return {"exported": len(list(folder.iterdir()))}
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_export_that_an_evaluation_asks_for_has_the_weights_of_all_ranks(
    strategy: str, pair: object, run_on_two: Callable[..., Path]
) -> None:
    folder: Path = pair.folder  # type: ignore[attr-defined]
    (folder / "exports.py").write_text(EXPORTS)
    (folder / "exports.yaml").write_text("trainer:\n  callbacks:\n    - class_path: exports.Exports\n")
    before = [len(path.read_text()) if (path := folder / f"said.{rank}").exists() else 0 for rank in range(2)]
    out = run_on_two(f"asked-{strategy}", *PPO, "--config", f"{strategy}.yaml", "--config", "exports.yaml")
    said = [(folder / f"said.{rank}").read_text()[start:] for rank, start in enumerate(before)]
    assert column(out, "val/exported") == [1, 2, 3]
    first, last = (weights(out / "asked" / step) for step in ("0", "4"))
    assert equal(last, weights(out / "export"))
    assert first.keys() == last.keys()
    assert not equal(first, last)
    failures = [text.count("config.yaml/export failed: ") for text in said]
    assert failures == [3, 0]  # a line of rank 0 per validation, and the run continues

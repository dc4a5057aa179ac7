"""A rollout in which nothing has a score stops the run, or is skipped with a warning."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from rlhf_lightning import LoaderData
from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.reinforce import REINFORCE
from rlhf_lightning.errors import UserError
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.loading import ModelConfig
from rlhf_lightning.run.metrics_csv import MetricsFile
from rlhf_lightning.stages import PolicyStage

ROWS = [{"prompt": f"say {word}"} for word in ("dog", "cat", "hello", "thanks")]


def fitted(
    root: Path, folder: str, algorithm: Any, scores: Callable[[int], float | None], max_steps: int = -1, **options: Any
) -> tuple[list[torch.Tensor], list[dict[str, str]]]:
    """Train on two rollouts of two prompts; `scores` maps the number of the rollout to the score of its responses."""
    calls: list[int] = []

    def reward(responses: list[str]) -> list[float | None]:
        calls.append(len(responses))
        score = scores(len(calls) - 1)
        return [None if score is None else score * row for row in range(len(responses))]

    torch.manual_seed(3)
    stage = PolicyStage(
        ModelConfig(name_or_path=folder), copy.deepcopy(algorithm), reward, generation=Sampler(4), **options,
        optimizer=partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, max_steps=max_steps, logger=MetricsFile(root), default_root_dir=root,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    loader: Any = DataLoader(ROWS, batch_size=2, collate_fn=list)  # type: ignore[arg-type]
    trainer.fit(stage, datamodule=LoaderData(loader))
    return [p.detach().clone() for p in stage.network.parameters()], rows_of(root)


def rows_of(root: Path) -> list[dict[str, str]]:
    with open(root / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tiny_model_folder: Callable[[str], str]) -> str:
    return tiny_model_folder("llama")


def test_the_run_stops_in_one_line_and_the_metrics_tell_why(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fitted(tmp_path, folder, PPO(minibatches=2), lambda rollout: None)
    assert str(caught.value) == (
        "reward FunctionReward scored none of the 2 responses of a rollout: it returned None or NaN for each; fix the reward, "
        "or set model.on_unscored to warn to skip such rollouts"
    )
    (row,) = rows_of(tmp_path)
    assert row["reward/unscored"] == "2.0"
    assert row["reward/mean"] == row["reward/std"] == row["kl/reference"] == ""


@pytest.mark.parametrize(
    "algorithm", [PPO(minibatches=2, epochs=2), REINFORCE(baseline="moving", responses_per_prompt=1)]
)
def test_a_skipped_rollout_changes_no_weight(
    folder: str, tmp_path: Path, algorithm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = algorithm.epochs * algorithm.minibatches
    one, _ = fitted(tmp_path / "one", folder, algorithm, lambda rollout: 1.0, max_steps=steps)
    capsys.readouterr()
    both, rows = fitted(
        tmp_path / "both", folder, algorithm, lambda rollout: 1.0 if rollout == 0 else None, on_unscored="warn"
    )
    assert all(map(torch.equal, one, both))
    assert capsys.readouterr().out.count("scored none of the 2 responses of a rollout: ") == 1
    assert [row["reward/mean"] == "" for row in rows] == [False, True]
    assert [row["reward/unscored"] for row in rows] == ["0.0", "2.0"]
    assert rows[1]["optimizer/grad_norm"] == ""

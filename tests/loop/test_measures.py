"""When the loop ends, and what the overlays of its runs hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from rlhf_lightning.errors import UserError
from rlhf_lightning.loop.config import LoopConfig
from rlhf_lightning.loop.measures import is_over
from rlhf_lightning.loop.runs import policy_overlay, reward_overlay
from rlhf_lightning.loop.tree import Tree

CONFIG = LoopConfig("reward.yaml", "ppo.yaml", rounds=9)
TREE = Tree(Path("loop"))


def rows(*values: float) -> list[dict[str, Any]]:
    return [{"reward": {}, "policy": {"val/reward/true": value}} for value in values]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.45], True),
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.4, 0.6, 0.7, 0.6], False),
        ([0.5, 0.4, 0.6, 0.7, 0.6, 0.6], True),
    ],
)
def test_rounds_without_a_new_best_value_end_the_loop(values: list[float], ends: bool) -> None:
    config = replace(CONFIG, monitor="policy/val/reward/true", rounds_without_gain=2)
    assert bool(is_over(rows(*values), config)) == ends
    assert is_over(rows(*values), CONFIG) is None


def test_the_number_of_rounds_ends_the_loop() -> None:
    assert is_over(rows(0.1, 0.2), replace(CONFIG, rounds=2)) == "all 2 rounds are done"
    assert is_over(rows(0.1), replace(CONFIG, rounds=2)) is None
    with pytest.raises(UserError, match="did you mean 'policy/val/reward/true'"):
        is_over(rows(0.1), replace(CONFIG, monitor="policy/val/reward/tru"))


def test_where_reward_model_policy_and_reference_start() -> None:
    first, second = TREE.round(0), TREE.round(1)
    last = replace(CONFIG, policy_start="last", reward_start="sft", held_out=0.0)
    assert "policy" not in policy_overlay(last, first, None)["model"]["init_args"]
    found = policy_overlay(last, second, first)["model"]["init_args"]
    assert found["policy"] == {"name_or_path": "loop/round-00/policy/export"}
    assert "policy" not in policy_overlay(CONFIG, second, first)["model"]["init_args"]
    assert "model" not in reward_overlay(last, second, first)
    assert reward_overlay(last, second, first)["data"]["init_args"] == {"train": "loop/round-01/labels.jsonl"}
    assert reward_overlay(CONFIG, second, first)["model"]["init_args"]["model"] == {
        "name_or_path": "loop/round-00/reward/export"
    }
    seeds = {
        overlay(CONFIG, each, None)["seed_everything"]
        for overlay in (reward_overlay, policy_overlay)
        for each in (first, second)
    }
    assert len(seeds) == 4

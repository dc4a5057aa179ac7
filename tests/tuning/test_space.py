"""The file of a search: what it means, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tuning_runs import SPACE

from rlhf_lightning.cli.shipped import shipped_folder
from rlhf_lightning.cli.tune import _last_words
from rlhf_lightning.errors import UserError
from rlhf_lightning.tuning.space import Objective, Parameter, read_space

optuna = pytest.importorskip("optuna")


def space(objective: Any = None, **parameters: Any) -> dict[str, Any]:
    return {
        "objective": {"metric": "val/x", **(objective or {})},
        "parameters": parameters or {"a": {"low": 0, "high": 1}},
    }


def test_ranges_and_choices_become_distributions() -> None:
    found = read_space(
        space(
            a={"low": 1, "high": 4},
            b={"low": 1.0e-4, "high": 1, "log": True},
            c={"low": 0.0, "high": 1.0, "step": 0.25},
            d={"choices": ["PPO", None, True, 2]},
            e={"low": 8, "high": 32, "step": 8},
        ),
        "space.yaml",
    )
    kinds = optuna.distributions
    assert found.distributions == {
        "a": kinds.IntDistribution(1, 4),
        "b": kinds.FloatDistribution(1.0e-4, 1.0, log=True),
        "c": kinds.FloatDistribution(0.0, 1.0, step=0.25),
        "d": kinds.CategoricalDistribution(["PPO", None, True, 2]),
        "e": kinds.IntDistribution(8, 32, step=8),
    }
    assert [each.examples for each in found.parameters[2:4]] == [(0.0, 1.0), ("PPO", None, True, 2)]


def test_a_limit_is_kept_at_the_limit_and_by_measured_values_alone() -> None:
    objective = Objective("val/x", kl_limit=0.5)
    assert [objective.is_within_limit(kl) for kl in (0.4, 0.5, 0.51, None)] == [True, True, False, False]
    assert Objective("val/x").is_within_limit(None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"parameters": SPACE["parameters"]}, "objective is None"),
        ({**space(), "parameter": {}}, "unknown key 'parameter'; did you mean 'parameters'?"),
        (space({"metrics": "x"}), "unknown key 'objective.metrics'; did you mean 'metric'?"),
        (space({"metric": 3}), "objective.metric is 3"),
        (space({"direction": "up"}), "objective.direction is 'up'; set it to maximize or minimize"),
        (space({"kl_limit": 0}), "objective.kl_limit is 0; set it to a number above 0"),
        (space(a=0.1), "parameters.a is 0.1; set it to {low: …, high: …} or {choices: [...]}"),
        (space(a={"low": 1}), "parameters.a is {'low': 1}"),
        (space(a={"low": 1, "high": 2, "logs": True}), "unknown key 'parameters.a.logs'; did you mean 'log'?"),
        (space(a={"low": "1e-4", "high": 1}), "parameters.a.low is '1e-4'; set it to a number"),
        (space(a={"low": 2, "high": 1}), "parameters.a.low is 2 and high is 1; set high above low"),
        (space(a={"low": 0.0, "high": 1.0, "log": True}), "parameters.a: "),
        (space(a={"low": 0.0, "high": 1.0, "step": 0.3}), "parameters.a: "),
        (space(a={"low": 0, "high": 1, "log": "yes"}), "parameters.a.log is 'yes'"),
        (space(a={"choices": [1]}), "parameters.a.choices is [1]"),
        (space(a={"choices": [[1], [2]]}), "parameters.a.choices is [[1], [2]]"),
        (space(a={"choices": [1, 1]}), "different"),
        (space(a={"choices": [1, 2], "log": True}), "unknown key 'parameters.a.log'"),
    ],
)
def test_what_is_wrong_is_one_line(content: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as raised:
        read_space(content, "space.yaml")
    line = str(raised.value)
    assert expected in line
    assert line.startswith("space.yaml: ")
    assert "\n" not in line


def test_shipped_spaces_can_be_read() -> None:
    files = sorted(shipped_folder("configs").glob("spaces/*.yaml"))
    assert [path.name for path in files] == ["ppo.yaml"]
    for path in files:
        assert isinstance(read_space(yaml.safe_load(path.read_text()), str(path)).parameters[0], Parameter)


def test_columns_have_the_last_words_of_keys_where_these_differ() -> None:
    assert _last_words(["model.optimizer.lr", "data.batch_size"]) == ["lr", "batch_size"]
    assert _last_words(["model.kl.coef", "model.entropy.coef", "lr"]) == ["model.kl.coef", "model.entropy.coef", "lr"]

"""Held-out numbers become means, and samples keep their order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from completions import completions

from rlhf_lightning.errors import UserError
from rlhf_lightning.io import json_line
from rlhf_lightning.rewards import Reward
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.training.validation import Validation
from rlhf_lightning.types import Completions


@pytest.mark.parametrize(("fn", "testing", "prefix", "rows"), [("fit", False, "val", 1), ("test", True, "test", 0)])
def test_means_skip_unknown_numbers_and_are_logged_once(
    module: Callable[..., Any], fn: str, testing: bool, prefix: str, rows: int
) -> None:
    own = module(state=SimpleNamespace(fn=fn), testing=testing)
    validation = Validation(own, MetricLog(own))
    validation.start()
    for batch in ([1.0, None], [3.0]):
        validation.measure([{"prompt": "p"}], lambda _, batch=batch: validation.held_out.add("loss/policy", batch))  # type: ignore[misc]
    validation.measure([], lambda _: pytest.fail("there are no rows"))
    validation.finish({"preference/accuracy": 0.5})
    assert own.logged == [(f"{prefix}/loss/policy", 2.0), (f"{prefix}/preference/accuracy", 0.5)]
    assert len(own.rows) == rows


def test_every_validation_has_the_same_random_numbers(module: Callable[..., Any]) -> None:
    own = module()
    validation, found = Validation(own, MetricLog(own)), []
    for _ in range(2):
        validation.start()
        for batch in ([{"prompt": "p"}], [{"prompt": "q"}, {"prompt": "r"}]):
            validation.measure(batch, lambda rows: found.append(validation.randomness(rows).seeds()))
    assert found[:2] == found[2:]
    assert len({seed for seeds in found[:2] for seed in seeds}) == 3


def test_an_error_of_a_measurement_is_raised(module: Callable[..., Any]) -> None:
    own = module()
    validation = Validation(own, MetricLog(own))

    def fail(_: Any) -> None:
        raise UserError("the server is gone")

    with pytest.raises(UserError, match="the server is gone"):
        validation.measure([{}], fail)


class Rated(Reward):
    """The scores that it is made with, `count` at a time."""

    def __init__(self, scores: list[float | None]) -> None:
        self.scores = scores

    def __call__(self, completions: Completions) -> list[float | None]:
        return [self.scores.pop(0) for _ in range(len(completions))]


@pytest.mark.parametrize(
    ("scores", "logged"),
    [([1.0, 2.0, 6.0], {}), ([1.0, None, 3.0], {"unscored": 1.0}), ([None, None, None], {"unscored": 3.0})],
)
def test_unscored_responses_are_counted_and_in_no_mean(
    module: Callable[..., Any], capsys: pytest.CaptureFixture[str], scores: list[float | None], logged: dict[str, float]
) -> None:
    own = module()
    validation = Validation(own, MetricLog(own))
    validation.start()
    rewards = {"mean": Rated(list(scores)), "true": Rated([0.0, 1.0, None])}
    for texts in (["a", "b"], ["c"]):
        rows = completions(texts)
        validation.measure([{}], lambda _, rows=rows: validation.held_out.add_completions(rows, rewards))  # type: ignore[misc]
    validation.finish({})
    found = dict(own.logged)
    known = [value for value in scores if value is not None]
    mean = found.pop("val/reward/mean")
    assert mean == sum(known) / len(known) if known else math.isnan(mean)
    assert found.pop("val/reward/true") == 0.5
    assert found.pop("val/reward/true/unscored") == 1
    assert {name: value for name, value in found.items() if "reward" in name} == {
        f"val/reward/{name}": value for name, value in logged.items()
    }
    said = capsys.readouterr().out
    line = "warning: val/reward/mean has no value: the reward returned None or NaN for each of the 3 responses\n"
    assert said == ("" if known else line)
    assert [json.loads(json_line(sample))["reward"] for sample in validation.samples] == scores  # null in samples.jsonl

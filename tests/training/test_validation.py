"""Held-out numbers become means, and samples keep their order."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.metrics import MetricLog
from rlhf_lightning.training.validation import Validation


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
    validation, drawn = Validation(own, MetricLog(own)), []
    for _ in range(2):
        validation.start()
        drawn.append(torch.rand(3, generator=validation.random_numbers))
    assert torch.equal(*drawn)


def test_an_error_of_a_measurement_is_raised(module: Callable[..., Any]) -> None:
    own = module()
    validation = Validation(own, MetricLog(own))

    def fail(_: Any) -> None:
        raise UserError("the server is gone")

    with pytest.raises(UserError, match="the server is gone"):
        validation.measure([{}], fail)

"""Every step of a schedule is that of transformers; the number of steps comes from the trainer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from rlhf_lightning.errors import UserError
from rlhf_lightning.training.schedules import (
    ScheduleFunction,
    SequentialSchedule,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    resolve_total_steps,
)

STEPS = 40


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 0.02)]
    return torch.optim.SGD(groups)


def rates(scheduler: Any, steps: int = STEPS) -> list[list[float]]:
    """The learning rates that each step is taken with."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (WarmupCosine, transformers.get_cosine_schedule_with_warmup),
        (WarmupLinear, transformers.get_linear_schedule_with_warmup),
        (WarmupConstant, lambda made, warmup, _: transformers.get_constant_schedule_with_warmup(made, warmup)),
    ],
)
@pytest.mark.parametrize("warmup", [{"warmup_steps": 0}, {"warmup_steps": 7}, {"warmup_ratio": 0.1}])
def test_every_step_is_that_of_transformers(kind: Any, theirs: Any, warmup: dict[str, Any]) -> None:
    ours = kind(optimizer(), **warmup)
    resolve_total_steps(ours, STEPS)
    expected = theirs(optimizer(), warmup.get("warmup_steps", 4), STEPS)
    assert torch.allclose(torch.tensor(rates(ours)), torch.tensor(rates(expected)), atol=1e-12)
    assert rates(ours, 3) == [rates(ours, 1)[0]] * 3  # transformers lets a cosine rise again behind its end


def test_min_ratio_is_where_the_decay_ends() -> None:
    schedule = WarmupCosine(optimizer(), warmup_steps=2, min_ratio=0.25)
    resolve_total_steps(schedule, STEPS)
    seen = rates(schedule, STEPS + 3)
    assert seen[2] == pytest.approx([0.1, 0.02])
    assert seen[-1] == pytest.approx([0.025, 0.005])
    assert seen[21] == pytest.approx([0.1 * (0.25 + 0.75 / 2), 0.02 * (0.25 + 0.75 / 2)])  # half of the way


def test_a_restored_schedule_goes_the_same_way_and_takes_a_new_number_of_steps() -> None:
    whole = WarmupLinear(optimizer(), warmup_steps=3)
    resolve_total_steps(whole, STEPS)
    expected = rates(whole)
    first = WarmupLinear(optimizer(), warmup_steps=3)
    resolve_total_steps(first, STEPS)
    rates(first, 11)
    for total in (STEPS, 2 * STEPS):
        again = WarmupLinear(optimizer(), warmup_steps=3)
        resolve_total_steps(again, total)
        again.load_state_dict(copy.deepcopy(first.state_dict()))
        again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        going_on = rates(again, STEPS - 11)
        if total == STEPS:
            assert going_on == expected[11:]
        else:
            assert going_on[5] == pytest.approx([0.1 * (80 - 16) / 77, 0.02 * (80 - 16) / 77])


def test_a_function_is_asked_with_the_steps_of_the_trainer() -> None:
    ours = ScheduleFunction(optimizer(), "transformers.get_cosine_schedule_with_warmup", {"num_warmup_steps": 5})
    resolve_total_steps(ours, STEPS)
    theirs = transformers.get_cosine_schedule_with_warmup(optimizer(), 5, STEPS)
    assert rates(ours) == rates(theirs)
    given = ScheduleFunction(
        optimizer(),
        "transformers.get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 5, "num_training_steps": 10},
    )
    resolve_total_steps(given, STEPS)
    assert rates(given) == rates(transformers.get_cosine_schedule_with_warmup(optimizer(), 5, 10))


def test_schedules_one_after_the_other() -> None:
    ours = SequentialSchedule(
        optimizer(),
        [lambda made: torch.optim.lr_scheduler.LinearLR(made, 0.5, 1.0, 10), lambda made: WarmupLinear(made, 0.0)],
        [10],
    )
    resolve_total_steps(ours, STEPS)
    seen = rates(ours)
    assert seen[0] == pytest.approx([0.05, 0.01])
    assert seen[10] == pytest.approx([0.1, 0.02])
    assert seen[25] == pytest.approx([0.05, 0.01])  # half of the thirty steps that are left


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: WarmupCosine(optimizer(), warmup_ratio=1.5), "warmup_ratio is 1.5"),
        (lambda: WarmupCosine(optimizer(), warmup_steps=-1), "warmup_steps is -1"),
        (lambda: WarmupCosine(optimizer()).set_total_steps(float("inf")), "set trainer.max_steps"),
        (lambda: ScheduleFunction(optimizer(), "transformers.get_no_schedule"), "cannot be imported"),
        (
            lambda: ScheduleFunction(optimizer(), "transformers.get_constant_schedule_with_warmup", {"warmup": 1}),
            "unknown key lr_scheduler.warmup",
        ),
        (lambda: ScheduleFunction(optimizer(), "math.sqrt"), "lr_scheduler math.sqrt"),
        (lambda: SequentialSchedule(optimizer(), [WarmupCosine], [3]), "milestones has 1 entries"),
    ],
)
def test_what_cannot_work_is_one_line(make: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        make()

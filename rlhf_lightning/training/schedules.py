"""Learning-rate schedules with warm-up; the number of optimizer steps comes from the trainer.

A config chooses one in a line: `lr_scheduler: {class_path: WarmupCosine, init_args: {warmup_ratio: 0.03}}`. The learning rate
of step n is that of the function of the same name in transformers (`get_cosine_schedule_with_warmup` and others).
"""

from __future__ import annotations

import importlib
import inspect
import math
from abc import abstractmethod
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from rlhf_lightning.errors import UserError, nearest


class WarmupSchedule(LRScheduler):
    """Raise the learning rate linearly from 0 during warm-up, then multiply it by `decay`.

    Args:
        optimizer: whose learning rates are scheduled.
        warmup_ratio: fraction of all steps that warm up, rounded up.
        warmup_steps: steps that warm up, in place of a fraction.
        min_ratio: lowest multiple of the learning rate after warm-up.
        total_steps: optimizer steps of the whole run; the stage sets it from the trainer where it is null.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_ratio: float = 0.03,
        warmup_steps: int | None = None,
        min_ratio: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        for name, value, highest in (("warmup_ratio", warmup_ratio, 1.0), ("min_ratio", min_ratio, 1.0)):
            if not 0 <= value <= highest:
                raise UserError(f"lr_scheduler.{name} is {value}; it must be between 0 and {highest:g}")
        for name, steps, least in (("warmup_steps", warmup_steps, 0), ("total_steps", total_steps, 1)):
            if steps is not None and steps < least:
                raise UserError(f"lr_scheduler.{name} is {steps}; it must be at least {least}")
        self.warmup_ratio, self.warmup_steps, self.min_ratio = warmup_ratio, warmup_steps, min_ratio
        self.total_steps = total_steps
        super().__init__(optimizer)

    def set_total_steps(self, steps: float) -> None:
        """Take the number of optimizer steps from the trainer, unless `total_steps` was given.

        Raises:
            UserError: the trainer has no end.
        """
        if self.total_steps is None:
            if math.isinf(steps) or steps < 1:
                raise UserError(
                    f"lr_scheduler {type(self).__name__} needs the number of optimizer steps and the trainer has no end; set "
                    "trainer.max_steps or lr_scheduler.total_steps"
                )
            self.total_steps = int(steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        """Compute the learning rate of every parameter group for the step to come."""
        factor = self.factor(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def factor(self, step: int) -> float:
        """Compute the multiple of the learning rate at an optimizer step, counted from 0."""
        total = self.total_steps or 1
        warmup = math.ceil(self.warmup_ratio * total) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return step / max(1, warmup)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return self.min_ratio + (1 - self.min_ratio) * self.decay(progress)

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Compute the factor after warm-up: 1 at `progress` 0, at the end of the run `progress` is 1."""

    def state_dict(self) -> dict[str, Any]:
        """Keep the step alone: arguments are those of the config, and the number of steps is that of the trainer."""
        kept = ("base_lrs", "last_epoch", "_step_count", "_last_lr")
        return {name: value for name, value in super().state_dict().items() if name in kept}


class WarmupCosine(WarmupSchedule):
    """Decay along half a cosine (Loshchilov and Hutter 2017), as transformers' `get_cosine_schedule_with_warmup`."""

    def decay(self, progress: float) -> float:
        """½ (1 + cos π progress)."""
        return 0.5 * (1 + math.cos(math.pi * progress))


class WarmupLinear(WarmupSchedule):
    """Decay on a straight line, as transformers' `get_linear_schedule_with_warmup`."""

    def decay(self, progress: float) -> float:
        """1 - progress."""
        return 1 - progress


class WarmupConstant(WarmupSchedule):
    """Keep the learning rate after warm-up, as transformers' `get_constant_schedule_with_warmup`."""

    def decay(self, progress: float) -> float:
        """Always 1."""
        return 1.0


class ScheduleFunction(LRScheduler):
    """A function that takes an optimizer and returns a scheduler, such as those of transformers.

    In a config the function itself may be named: `lr_scheduler: {class_path: transformers.get_wsd_schedule, init_args: {…}}`.

    Args:
        optimizer: whose learning rates are scheduled.
        function: import path of the function.
        arguments: of the function; a parameter `num_training_steps` that is not among them is taken from the trainer.
    """

    def __init__(self, optimizer: Optimizer, function: str, arguments: dict[str, Any] | None = None) -> None:
        module, _, name = function.rpartition(".")
        try:
            self.function = getattr(importlib.import_module(module), name)
            self.parameters = inspect.signature(self.function).parameters
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise UserError(f"lr_scheduler {function} cannot be imported: {error}") from error
        self.name, self.arguments = function, dict(arguments or {})
        known = [parameter for parameter in self.parameters if parameter != "optimizer"]
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters.values())
        for argument in () if takes_any else self.arguments:
            if argument not in known:
                raise UserError(f"unknown key lr_scheduler.{argument} of {function}; {nearest(argument, known)}")
        self.needs_steps = "num_training_steps" in self.parameters and "num_training_steps" not in self.arguments
        self.optimizer = optimizer
        self.inner: Any = None if self.needs_steps else self._made()

    def set_total_steps(self, steps: float) -> None:
        """Make the scheduler now, if the function asks for the number of steps.

        Raises:
            UserError: the trainer has no end.
        """
        if self.needs_steps and self.inner is None:
            if math.isinf(steps) or steps < 1:
                raise UserError(
                    f"lr_scheduler {self.name} needs the number of optimizer steps and the trainer has no end; set "
                    "trainer.max_steps or num_training_steps"
                )
            self.arguments["num_training_steps"] = int(steps)
            self.inner = self._made()

    def _made(self) -> Any:
        try:
            made = self.function(self.optimizer, **self.arguments)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"lr_scheduler {self.name} cannot be made: {error}") from error
        if not isinstance(made, LRScheduler):
            raise UserError(f"lr_scheduler {self.name} returns {type(made).__name__}; it must return a LRScheduler")
        return made

    def step(self, *args: Any) -> None:
        """Step the scheduler that the function returned."""
        self.inner.step(*args)

    def get_lr(self) -> list[float | Tensor]:
        """Compute the learning rate of every parameter group for the step to come."""
        rates: list[float | Tensor] = self.inner.get_lr()
        return rates

    def _update_lr(self, epoch: int | None = None) -> None:
        """Start at a milestone of a sequence, which calls this of each of its schedules."""
        self.inner._update_lr(epoch)

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the learning rate of every parameter group."""
        rates: list[float | Tensor] = self.inner.get_last_lr()
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler that the function returned."""
        state: dict[str, Any] = self.inner.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.inner.load_state_dict(state_dict)


class SequentialSchedule(SequentialLR):
    """Follow one schedule after another; in a config also named `torch.optim.lr_scheduler.SequentialLR`.

    Args:
        optimizer: whose learning rates are scheduled.
        schedulers: classes, or functions of an optimizer, each with its arguments but the optimizer.
        milestones: steps at which the next schedule begins, one fewer than there are schedules.
    """

    def __init__(self, optimizer: Optimizer, schedulers: list[LRSchedulerCallable], milestones: list[int]) -> None:
        if len(milestones) != len(schedulers) - 1:
            raise UserError(
                f"lr_scheduler.milestones has {len(milestones)} entries for {len(schedulers)} schedulers; it must have one fewer"
            )
        made: list[Any] = [make(optimizer) for make in schedulers]
        super().__init__(optimizer, made, milestones)


def resolve_total_steps(scheduler: Any, steps: float) -> None:
    """Tell every schedule that asks for it how many optimizer steps the run has; each inner one gets those of its time.

    A `SequentialLR` gives each of its schedules the steps between its milestones.
    """
    inner = getattr(scheduler, "_schedulers", ())
    if not inner:
        getattr(scheduler, "set_total_steps", lambda _: None)(steps)
        return
    bounds = [0, *getattr(scheduler, "_milestones", [0] * (len(inner) - 1)), steps]
    for place, schedule in enumerate(inner):
        sequential = isinstance(scheduler, SequentialLR)
        resolve_total_steps(schedule, bounds[place + 1] - bounds[place] if sequential else steps)
    if isinstance(scheduler, SequentialLR):  # only the first one is at work before the first milestone
        rates = scheduler._schedulers[0].get_last_lr()
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

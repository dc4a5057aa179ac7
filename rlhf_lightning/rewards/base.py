"""The contract of a reward, and the function that checks its scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError, text_of
from rlhf_lightning.rewards.checking import checked_components, checked_scores, checked_steps
from rlhf_lightning.types import Completions

if TYPE_CHECKING:
    from rlhf_lightning.models.shared_base import SharedBase


@dataclass(frozen=True)
class RewardOutput:
    """Hold what a reward returns where it has more to say than one number per response."""

    scores: Any
    """B numbers, None where a response cannot be scored. For a reward that is `per_step`, B lists of numbers."""
    components: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Named scores from which `scores` was computed, B each; logged as `reward/<name>`."""
    step_rewards: Tensor | None = None
    """float32 [B, T]; the parts of the scores that were given after a token, of a reward that places them itself."""


@dataclass(frozen=True)
class Scores:
    """Hold the checked scores of B completions."""

    rewards: Tensor
    """float32 [B]; NaN where a response cannot be scored."""
    step_rewards: Tensor | None
    """float32 [B, T]; the parts of `rewards` that were given after a token. The rest is for the end of the response. None: all
    of it is."""
    components: dict[str, list[float | None]]
    """Named scores, B each."""


class Reward(ABC):
    """Scores completions: one number per response, higher is better, before any KL penalty."""

    best: float | None = None
    """The highest possible mean score, where it is known; a run's summary shows it."""
    per_step: bool = False
    """True: the reward returns a list of numbers per response, one for each of `Completions.ends`."""
    scores_while_generating: bool = False
    """True: another thread may call the reward while the policy generates. It must share neither weights nor device with it."""
    component_weights: Mapping[str, float] | None = None
    """Weights of the components whose weighted sum is the score, by name; other components are only logged. None: the score is
    no such sum."""

    def check(self) -> None:  # noqa: B027  (most rewards have nothing to check)
        """Check options, paths and imports without loading anything heavy.

        Raises:
            UserError: one of them is wrong.
        """

    def check_columns(self, columns: Collection[str], where: str) -> None:  # noqa: B027
        """Check that the rows have the columns that scoring reads.

        Args:
            columns: names of the columns of a split.
            where: name of the split, for messages.

        Raises:
            UserError: a column is missing.
        """

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the columns that the scores are made of; all of them where a reward does not say."""
        return columns

    def share(self, base: SharedBase) -> None:  # noqa: B027
        """Use the base model of a LoRA policy instead of loading another copy, where that is exact; called before `load`."""

    def load(self, device: torch.device) -> None:  # noqa: B027
        """Load weights onto `device`; called on every rank before the first score, perhaps more than once."""

    @abstractmethod
    def __call__(self, completions: Completions) -> Sequence[Any] | RewardOutput:
        """Return one score for each of the B completions; None or NaN for one that cannot be scored.

        A reward that is `per_step` returns a list of scores for each completion. `RewardOutput` adds components.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during a run, such as a random generator; every checkpoint holds it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the state that `state_dict` returned."""


def score(reward: Reward, completions: Completions) -> Tensor:
    """Score B completions and check the result; float32 [B], as `Scores.rewards`. See `reward_scores`."""
    return reward_scores(reward, completions).rewards


def reward_scores(reward: Reward, completions: Completions) -> Scores:
    """Score B completions, with their steps and components, and check the result.

    Raises:
        UserError: the reward raised an error, `checked_scores` or `checked_steps` refuses what it returned, or a component that
            has a weight is missing.
    """
    name, count = type(reward).__name__, len(completions)
    checked: Scores = _called(name, count, lambda: _checked(reward, reward(completions), completions))
    return checked


def _checked(reward: Reward, output: Any, completions: Completions) -> Scores:
    """Check what a reward returned, inside of `_called`: its values may be of the user's own types."""
    name, count = type(reward).__name__, len(completions)
    output = output if isinstance(output, RewardOutput) else RewardOutput(output)
    step_rewards = output.step_rewards
    if reward.per_step:
        rewards, step_rewards = checked_steps(name, output.scores, completions)
    else:
        rewards = torch.tensor(checked_scores(name, output.scores, count), dtype=torch.float32)
    if missing := set(reward.component_weights or ()) - set(output.components):
        raise UserError(
            f"reward {name} has a weight for {min(missing)!r} and returned no such component; add it to RewardOutput"
        )
    components = {
        component: [
            None if math.isnan(value) else value for value in checked_scores(f"{name}, {component},", values, count)
        ]
        for component, values in checked_components(name, output.components).items()
    }
    return Scores(rewards, step_rewards, components)


def _called(name: str, count: int, function: Callable[[], Any]) -> Any:
    """Run code of a reward, whatever it raises; `sys.exit` in it would end the run with status 0."""
    try:
        return function()
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if type(error).__name__ == "SIGTERMException":  # Lightning's; it arrived during the call
            raise
        kind = "called sys.exit" if isinstance(error, SystemExit) else f"raised {type(error).__name__}"
        raise UserError(f"reward {name} {kind}: {text_of(error)}; the call had {count} completions") from error

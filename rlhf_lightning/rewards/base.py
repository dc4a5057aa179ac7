"""The contract of a reward, and the function that checks its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError, text_of
from rlhf_lightning.rewards.checking import checked_scores
from rlhf_lightning.types import Completions

if TYPE_CHECKING:
    from rlhf_lightning.models.shared_base import SharedBase


class Reward(ABC):
    """Scores completions: one number per response, higher is better, before any KL penalty."""

    best: float | None = None
    """The highest possible mean score, where it is known; a run's summary shows it."""
    scores_while_generating: bool = False
    """True: another thread may call the reward while the policy generates. It must share neither weights nor device with it."""

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
    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """Return one score for each of the B completions; None or NaN for one that cannot be scored."""

    def components(self) -> dict[str, list[float | None]]:
        """Return the named scores that the last call was computed from, B each; empty for a reward without components."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during a run, such as a random generator; every checkpoint holds it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the state that `state_dict` returned."""


def score(reward: Reward, completions: Completions) -> Tensor:
    """Score B completions and check the result.

    Returns:
        float32 [B]; NaN where the reward returned None or NaN: the response cannot be scored.

    Raises:
        UserError: the reward raised an error, or `checked_scores` refuses what it returned.
    """
    name, count = type(reward).__name__, len(completions)
    checked = _called(name, count, lambda: checked_scores(name, reward(completions), count))
    return torch.tensor(checked, dtype=torch.float32)


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

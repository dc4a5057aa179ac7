"""What a reward is, and the one place where its answers are checked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Completions

if TYPE_CHECKING:
    from rlhf_lightning.models.shared_base import SharedBase


class Reward(ABC):
    """Scores completions: one number a response, higher is better, before any KL penalty."""

    best: float | None = None
    """The highest mean score there can be, where it is known; a run's summary shows it."""
    scores_while_generating: bool = False
    """It may be asked from another thread while the policy writes: it shares neither weights nor device with it."""

    def check(self) -> None:  # noqa: B027  (most rewards have nothing to check)
        """Find what cannot work without loading anything heavy.

        Raises:
            UserError: a path, an import or an argument is wrong.
        """

    def check_columns(self, columns: Collection[str], where: str) -> None:  # noqa: B027
        """Find that the rows lack a column that the scores need; called where a data module shows its rows.

        Raises:
            UserError: naming the column and `where` it is not.
        """

    def used_columns(self, columns: Collection[str]) -> Collection[str]:
        """Name the columns that the scores are made of; all of them where a reward does not say."""
        return columns

    def share(self, base: SharedBase) -> None:  # noqa: B027
        """Lie on the base of a policy with an adapter, instead of loading a model, where that can be; comes before `load`."""

    def load(self, device: torch.device) -> None:  # noqa: B027
        """Load what is heavy onto `device`; called on every rank before the first score, perhaps more than once."""

    @abstractmethod
    def __call__(self, completions: Completions) -> Sequence[float | None]:
        """One score for each of the B completions; None for one that cannot be scored."""

    def parts(self) -> dict[str, list[float | None]]:
        """The scores that the last call was made of, by name; nothing for a reward without parts."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The memory of the reward, if it has one; part of every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` gave."""


def score(reward: Reward, completions: Completions) -> Tensor:
    """Ask a reward for the scores of B completions and check what it answers.

    Returns:
        float32 [B]; NaN where the reward said None.

    Raises:
        UserError: the reward raised, or gave no sequence, the wrong number of scores, a NaN, no number, or one that is
            infinite in float32.
    """
    name, count = type(reward).__name__, len(completions)
    try:
        answers = reward(completions)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"reward {name} raised {type(error).__name__}: {error}; it was given {count} completions"
        ) from error
    answers = answers.tolist() if isinstance(answers, Tensor) else answers
    if not isinstance(answers, Iterable) or isinstance(answers, str | bytes | Mapping | Set):
        found = "nothing" if answers is None else repr(answers)
        raise UserError(f"reward {name} returned {found}; it must return {count} scores, one a completion")
    answers = list(answers)
    if len(answers) != count:
        raise UserError(f"reward {name} returned {len(answers)} scores for {count} completions; one each is needed")
    return torch.tensor([_number(name, row, answer) for row, answer in enumerate(answers)], dtype=torch.float32)


def _number(name: str, row: int, answer: object) -> float:
    if answer is None:
        return math.nan
    try:
        value = float(answer)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"reward {name} returned {answer!r} for completion {row}; a number or None is needed") from None
    if not abs(value) <= torch.finfo(torch.float32).max:  # a NaN too
        raise UserError(
            f"reward {name} returned {value} for completion {row}; a finite number is needed, None if it cannot be scored"
        )
    return value

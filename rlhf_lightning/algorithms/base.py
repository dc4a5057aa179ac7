"""The contract that every algorithm keeps, and the KL penalty that the online ones share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout


class Algorithm(ABC):
    """A dataclass whose fields are the hyper-parameters. It sees rollouts and batches, never a model, device or trainer."""

    needs_values: ClassVar[bool] = False
    """Rollouts and outputs carry the critic's values."""
    rows_per_loss_group: ClassVar[int] = 1
    """Rows that a minibatch never separates; 2 for a pair."""
    min_responses: ClassVar[int] = 1
    """The fewest responses of a prompt that give it something to compare."""
    learns_from_pairs: ClassVar[bool] = False
    """It can learn from recorded preference pairs, without a reward."""
    prepare_reads_logprobs: ClassVar[bool] = True
    """`prepare` reads `Rollout.logprobs`. Where it does not, recorded pairs that are learned from in one step pass through the
    policy once, in that step, and not before it as well."""
    state_fields: ClassVar[tuple[str, ...]] = ()
    """Attributes that change during a run and that a checkpoint must hold; dotted for those of a field."""

    responses_per_prompt: int
    epochs: int
    minibatches: int

    def __post_init__(self) -> None:
        """Check the hyper-parameters that all algorithms have.

        Raises:
            UserError: a count is below one, a number is NaN, or too few responses of a prompt for this algorithm.
        """
        name = type(self).__name__
        for field, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"{name}.{field} is nan; it must be a number")
        for field in ("responses_per_prompt", "epochs", "minibatches"):
            if getattr(self, field) < 1:
                raise UserError(f"{name}.{field} is {getattr(self, field)}; it must be at least 1")
        if self.responses_per_prompt < self.min_responses:
            raise UserError(
                f"{name}.responses_per_prompt is {self.responses_per_prompt}; {name} compares the responses of a prompt "
                f"with each other and needs at least {self.min_responses}"
            )

    @property
    def needs_entropy(self) -> bool:
        """The loss reads `PolicyOutput.entropy`."""
        return False

    @abstractmethod
    def prepare(self, rollout: Rollout) -> Batch:
        """Give credit, or say which rows form a pair. Called once per rollout, without gradient; keeps the number of rows."""

    @abstractmethod
    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """The loss of one minibatch, or of a part of it, as a sum; the stage divides it by `weight` of the whole."""

    def weight(self, batch: Batch) -> Tensor:
        """What the loss of `batch` is divided by, additive over parts of a batch; here the tokens the policy chose."""
        return batch.mask.sum()

    def stop(self, metrics: dict[str, float]) -> bool:
        """Skip what is left of this rollout; asked after every optimiser step with its metrics, which are of all ranks."""
        return False

    @property
    def kl_target(self) -> float | None:
        """Nats per token that the policy is steered to; None where nothing steers it to a number."""
        return None

    def metrics(self) -> dict[str, float]:
        """What to log once a rollout besides the loss; a coefficient that adapts, for instance."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The memory of the algorithm; part of every checkpoint."""
        return {name: attrgetter(name)(self) for name in self.state_fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, value in state.items():
            owner, _, leaf = name.rpartition(".")
            setattr(attrgetter(owner)(self) if owner else self, leaf, value)


class PolicyGradient(Algorithm):
    """An algorithm that learns from rewards and pays for leaving the reference."""

    state_fields: ClassVar[tuple[str, ...]] = ("kl.coef",)

    kl: KLPenalty

    def __post_init__(self) -> None:
        """Check the hyper-parameters of the algorithms that clip a ratio or discount.

        Raises:
            UserError: a range that is not positive, a dual clip that is not above 1, or a discount outside [0, 1].
        """
        super().__post_init__()
        for field in ("clip_range", "clip_range_high", "value_clip_range"):
            if (value := getattr(self, field, None)) is not None and value <= 0:
                raise UserError(f"{type(self).__name__}.{field} is {value}; it must be positive")
        if (cap := getattr(self, "dual_clip", None)) is not None and cap <= 1:
            raise UserError(
                f"{type(self).__name__}.dual_clip is {cap}; it must be above 1, or nothing bad is unlearned"
            )
        for field in ("gamma", "gae_lambda"):
            if not 0 <= (value := getattr(self, field, 1.0)) <= 1:
                raise UserError(f"{type(self).__name__}.{field} is {value}; it must be from 0 to 1")

    @property
    def kl_target(self) -> float | None:
        """That of an adaptive coefficient."""
        return self.kl.target

    def metrics(self) -> dict[str, float]:
        """The coefficient of the KL penalty, where it adapts."""
        return {} if self.kl.target is None else {"kl/coef": self.kl.coef}

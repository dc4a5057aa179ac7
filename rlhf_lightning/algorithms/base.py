"""The contract of an algorithm, and the base class of those that learn from rewards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from operator import attrgetter
from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.kl_penalty import KLPenalty
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.masked import row_sum
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput, Rollout

LEARNS_FROM = ("rewards", "prompts", "pairs", "labels")
"""What an algorithm can learn from: `rewards` of responses that the policy generates, the `prompts` alone (the policy generates
responses, and nothing scores them), recorded preference `pairs`, or recorded responses with `labels`, good or bad."""

POSITIVE = (
    *("clip_range", "clip_range_high", "value_clip_range", "ratio_cap"),
    *("update_kl_limit", "max_response_length", "overlong_buffer"),
)
"""Names of hyper-parameters of policy gradients that must be above 0, or null."""


class Algorithm(ABC):
    """A dataclass whose fields are the hyper-parameters.

    It reads rollouts and batches, and never a model, tokenizer, optimizer, device, trainer or logger.
    """

    needs_values: ClassVar[bool] = False
    """True: rollouts and policy outputs hold the critic's values."""
    rows_per_loss_group: ClassVar[int] = 1
    """Number of adjacent rows that share one loss and stay in one minibatch; 2 for a pair."""
    min_responses: ClassVar[int] = 1
    """The fewest responses per prompt that the algorithm can compare."""
    learns_from: ClassVar[tuple[str, ...]] = ("rewards",)
    """Of `LEARNS_FROM`; without a reward the first other than `rewards` counts."""
    greedy_baseline: ClassVar[bool] = False
    """True: rollouts hold the score of the greedy response to each prompt, which is generated and scored besides."""
    needs_components: ClassVar[bool] = False
    """True: the reward must be a weighted sum; `Rollout.components` and `Rollout.component_weights` are not None."""
    needs_teacher: ClassVar[bool] = False
    """True: the reference must be another model than the policy."""
    mismatched_rows: ClassVar[bool] = False
    """True: rollouts of labels also hold each prompt with the response to another prompt of the global batch, marked by
    `Rollout.mismatched`. `prepare` empties the mask of these rows."""
    prepare_reads_logprobs: ClassVar[bool] = True
    """True: `prepare` reads `Rollout.logprobs`. False lets recorded pairs skip the policy's pass before their only step."""
    state_fields: ClassVar[tuple[str, ...]] = ()
    """Names of attributes that change during a run; checkpoints hold them. A dotted name is an attribute of a field."""

    max_refills: int = 0
    """Further requests of prompts in place of those that `teaches` refuses."""
    responses_per_prompt: int
    epochs: int
    minibatches: int

    def __post_init__(self) -> None:
        """Check the hyper-parameters that all algorithms have.

        Raises:
            UserError: a count is below 1, a number is not finite, or the algorithm needs more responses per prompt.
        """
        name = type(self).__name__
        for field, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name}.{field} is {value}; set it to a finite number")
        for field in ("responses_per_prompt", "epochs", "minibatches"):
            if getattr(self, field) < 1:
                raise UserError(f"{name}.{field} is {getattr(self, field)}; set it to 1 or more")
        if self.max_refills < 0:
            raise UserError(f"{name}.max_refills is {self.max_refills}; set it to 0 or more")
        if self.responses_per_prompt < self.min_responses:
            raise UserError(
                f"{name}.responses_per_prompt is {self.responses_per_prompt}; {name} compares the responses to a prompt "
                f"with each other: set it to {self.min_responses} or more"
            )
        if self.bootstraps and not self.needs_values:
            raise UserError(f"{name}.bootstraps is true and {name} has no critic; set needs_values to True")

    @property
    def needs_reference(self) -> bool:
        """Return whether `prepare` or `loss` reads `reference_logprobs`; else `reference: none` is allowed, and they are None."""
        return True

    @property
    def needs_entropy(self) -> bool:
        """Return whether the loss reads `PolicyOutput.entropy`."""
        return False

    @property
    def bootstraps(self) -> bool:
        """Return whether `prepare` reads `Rollout.final_values`; only an algorithm that `needs_values` may."""
        return False

    def teaches(self, rewards: Tensor, groups: Tensor, valid: Tensor) -> Tensor | None:
        """Mark the rows that the algorithm learns something from; a prompt without one is replaced by a further prompt.

        Args:
            rewards: float32 [B].
            groups: int64 [B]; rows of one prompt share it.
            valid: bool [B]; False for rows that have no score.

        Returns:
            bool [B]; None keeps every prompt.
        """
        return None

    @abstractmethod
    def prepare(self, rollout: Rollout) -> Batch:
        """Compute advantages, or order the rows in pairs; called once per rollout, without gradient.

        Returns:
            As many rows as `rollout` has, or ranks would count different minibatches. A row to ignore has an empty mask.
        """

    @abstractmethod
    def loss(self, output: PolicyOutput, batch: Batch) -> LossOutput:
        """Compute the loss of a micro-batch as a sum; the stage divides it by the `weight` of the whole minibatch.

        Args:
            output: the policy's present log-probabilities, entropy and values.
            batch: rows from `prepare`.
        """

    def weight(self, batch: Batch) -> Tensor:
        """Return the denominator of the loss, additive over micro-batches; here the number of tokens that the policy chose."""
        return batch.mask.sum()

    def stop(self, metrics: dict[str, float]) -> bool:
        """Return whether to skip the rest of this rollout, given the metrics of the last optimiser step over all ranks."""
        return False

    @property
    def kl_target(self) -> float | None:
        """Return the target of an adaptive KL coefficient in nats per token; None without one."""
        return None

    def metrics(self) -> dict[str, float]:
        """Return values to log once per rollout besides the loss, such as an adaptive coefficient."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the values of `state_fields`; every checkpoint holds them."""
        return {name: attrgetter(name)(self) for name in self.state_fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values that `state_dict` returned."""
        for name, value in state.items():
            owner, _, leaf = name.rpartition(".")
            setattr(attrgetter(owner)(self) if owner else self, leaf, value)


class PolicyGradient(Algorithm):
    """An algorithm that learns from rewards, with a penalty on the KL divergence from the reference."""

    state_fields: ClassVar[tuple[str, ...]] = ("kl.coef",)

    kl: KLPenalty

    def __post_init__(self) -> None:
        """Check clip ranges, limits, weights and discounts, where the algorithm has them.

        Raises:
            UserError: a clip range or limit is not positive, a weight is negative, the dual clip is not above 1, a discount is
                outside [0, 1], or truncated responses are both penalised and bootstrapped.
        """
        super().__post_init__()
        for field in POSITIVE:
            if (value := getattr(self, field, None)) is not None and value <= 0:
                raise UserError(f"{type(self).__name__}.{field} is {value}; set it to a positive number")
        if (dual_clip := getattr(self, "dual_clip", None)) is not None and dual_clip <= 1:
            raise UserError(
                f"{type(self).__name__}.dual_clip is {dual_clip}; at 1 or below, tokens with negative advantages get no "
                "gradient: set it above 1, for example to 3.0, or to null"
            )
        for field in ("value_coef", "truncation_penalty", "critic_warmup", "overlong_penalty"):
            if (value := getattr(self, field, 0)) < 0:
                raise UserError(f"{type(self).__name__}.{field} is {value}; set it to 0 or a positive number")
        for field in ("gamma", "gae_lambda", "value_lambda"):
            if (value := getattr(self, field, None)) is not None and not 0 <= value <= 1:
                raise UserError(f"{type(self).__name__}.{field} is {value}; set it to a number from 0 to 1")
        if self.bootstraps and (penalty := getattr(self, "truncation_penalty", 0.0)):
            raise UserError(
                f"{type(self).__name__}.bootstrap_truncated is true and truncation_penalty is {penalty}: the first treats a "
                "truncated response as incomplete, the second as one that ended badly; set truncation_penalty to 0, or "
                "bootstrap_truncated to false"
            )

    @property
    def needs_reference(self) -> bool:
        """Return whether there is a penalty on the KL divergence from the reference."""
        return self.kl.coef > 0

    @property
    def needs_entropy(self) -> bool:
        """Return whether there is an entropy bonus."""
        return getattr(self, "entropy_coef", 0.0) != 0

    @property
    def bootstraps(self) -> bool:
        """Return whether truncated responses bootstrap from the critic."""
        return getattr(self, "bootstrap_truncated", False)

    @property
    def kl_target(self) -> float | None:
        """Return the target of an adaptive coefficient; None where the coefficient is fixed."""
        return self.kl.target

    def returns(self, rollout: Rollout) -> Tensor:
        """Return float32 [B]: the reward of each response, minus its KL penalty where that is in the reward."""
        return rollout.rewards - row_sum(self.kl.in_reward(rollout), rollout.mask)

    def ratio(self, output: PolicyOutput, batch: Batch) -> Tensor:
        """Return float32 [B, T]: the ratio of the policy to the one that generated, per token; 1 off the mask."""
        return (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0).exp()

    def metrics(self) -> dict[str, float]:
        """Return the coefficient of the KL penalty, where it adapts."""
        return {} if self.kl.target is None else {"kl/coef": self.kl.coef}

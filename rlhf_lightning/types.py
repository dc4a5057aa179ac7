"""What flows through the library: `Completions` → `Rollout` → `Batch`, and what a policy and a loss return.

Dimensions: B rows (a prompt with one response each), P prompt tokens (left padded), T response tokens (right padded),
V vocabulary. Log-probabilities and KL are in nats, at the sampling temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

RawRows = list[dict[str, Any]]
"""Rows of a data set as Python values."""
RowsT = TypeVar("RowsT", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """Tensors that all have B rows: the part that a rollout and the text it came from have in common."""

    tokens: Tensor
    """int64 [B, P+T]; prompt then response."""
    prompt_mask: Tensor
    """bool [B, P]; True on prompt tokens, False on the padding to their left."""
    mask: Tensor
    """bool [B, T]; True where the policy chose the token, the stop token included. All False: the row counts for nothing."""
    groups: Tensor
    """int64 [B]; rows of one prompt share it."""
    truncated: Tensor
    """bool [B]; the response ended without a stop token."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def response_lengths(self) -> Tensor:
        """int64 [B]: tokens up to the last one under the mask; between them may be context, such as a user's turn."""
        places = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return (self.mask * places).amax(-1) if self.mask.shape[1] else self.mask.sum(-1)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor field that is not None, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self: RowsT, device: torch.device | str, non_blocking: bool = False) -> RowsT:
        """A copy with every tensor on `device`; Lightning calls it to move a batch."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) for name, value in self.tensors().items()
        }
        return replace(self, **moved)

    def rows(self: RowsT, index: Tensor) -> RowsT:
        """The rows that `index` (int64 or bool) names, in that order; a tensor without a row dimension stays."""
        taken: dict[str, Any] = {name: value[index] if value.dim() else value for name, value in self.tensors().items()}
        return replace(self, **taken)


@dataclass(frozen=True)
class Completions(Rows):
    """What generation returns and a reward reads."""

    prompts: list[str] = field(default_factory=list)
    """B strings, special tokens included, as the policy saw them."""
    responses: list[str] = field(default_factory=list)
    """B strings, special tokens left out."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """What the data set said besides: column name to B values."""
    logprobs: Tensor | None = None
    """float32 [B, T]; recorded while sampling. None where the text was not sampled or the sampler records none."""
    values: Tensor | None = None
    """float32 [B, T]; recorded as well, where the critic reads the trunk that writes."""


@dataclass(frozen=True)
class Rollout(Rows):
    """The tensors of `Completions` and what was measured on them."""

    logprobs: Tensor
    """float32 [B, T]; under the policy that wrote it."""
    reference_logprobs: Tensor
    """float32 [B, T]; under the reference."""
    rewards: Tensor
    """float32 [B]; one score a response, before any KL."""
    values: Tensor | None
    """float32 [B, T]; the critic's. None unless the algorithm `needs_values`."""


@dataclass(frozen=True)
class Batch(Rollout):
    """What a loss may read; the type says that credit is done."""

    advantages: Tensor | None
    """float32 [B, T]; None for preference losses."""
    returns: Tensor | None
    """float32 [B, T]; what the critic learns. None unless the algorithm `needs_values`."""
    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    """float32 []; what the whole optimiser step (all micro-batches, all ranks) weighs: the loss is divided by it."""

    @classmethod
    def of(cls, rollout: Rollout, advantages: Tensor | None = None, returns: Tensor | None = None) -> Batch:
        """The rollout with its credit."""
        held = {item.name: getattr(rollout, item.name) for item in fields(Rollout)}
        return cls(**held, advantages=advantages, returns=returns)


@dataclass(frozen=True)
class PolicyOutput:
    """What the policy says of a batch of responses that already exist."""

    logprobs: Tensor
    """float32 [B, T]; of the response tokens."""
    entropy: Tensor | None = None
    """float32 [B, T]; None unless asked for."""
    values: Tensor | None = None
    """float32 [B, T]; V of the state before each token. None where there is no critic."""


@dataclass(frozen=True)
class LossOutput:
    """A loss that is not yet divided, and what to log of it."""

    loss: Tensor
    """float32 []; a sum over tokens or rows. The stage divides it by the weight of the optimiser step."""
    means: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Metric name to (sum, count); added up over micro-batches, minibatches and ranks before dividing."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Metric name to a value whose maximum is logged."""


@dataclass(frozen=True)
class InstructionBatch(Rows):
    """Prompts with recorded completions, for supervised fine-tuning."""

    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    """float32 []; completion tokens of the whole optimiser step."""


@dataclass(frozen=True)
class PreferenceBatch(Rows):
    """Recorded responses and how people judged them, for reward modelling; `groups` holds what is compared."""

    ratings: Tensor
    """float32 [B]; higher is better. 1 and 0 for a pair, places for a ranking."""
    margins: Tensor
    """float32 [B]; by how much a response must beat the others of its group, 0 without a recorded margin."""
    weight: Tensor = field(default_factory=lambda: torch.ones(()))
    """float32 []; groups (responses, for a regression) of the whole optimiser step."""

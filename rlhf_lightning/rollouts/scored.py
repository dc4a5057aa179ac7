"""Responses with their scores, before the training model measures them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.rollouts.pipeline import joined_tensors
from rlhf_lightning.types import Rows


@dataclass(frozen=True)
class RequestStatistics:
    """Hold the costs of requests on one rank, for the metrics of a rollout."""

    generate_seconds: float = 0.0
    score_seconds: float = 0.0
    responses: int = 0
    tokens: int = 0
    unscored: int = 0

    def __add__(self, other: RequestStatistics) -> RequestStatistics:
        mine, theirs = ([getattr(each, item.name) for item in fields(each)] for each in (self, other))
        return RequestStatistics(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclass(frozen=True)
class Scored(Rows):
    """Hold what a generator and a reward give; the rows of an unscored response have an empty mask and the score 0."""

    rewards: Tensor
    """float32 [B]; one score per response."""
    has_scores: bool = True
    """False: nothing was scored, and `rewards` are zeros."""
    logprobs: Tensor | None = None
    """float32 [B, T]; recorded while sampling. None where the generator records none."""
    values: Tensor | None = None
    """float32 [B, T]; recorded while sampling. None for critics that the generator does not ask."""
    step_rewards: Tensor | None = None
    """float32 [B, T]; the parts of `rewards` that were given after a token. None: all of it is for the end of the response."""
    baselines: Tensor | None = None
    """float32 [B]; score of the greedy response to the prompt. None unless it was requested."""
    components: Tensor | None = None
    """float32 [B, K]; the named scores that `rewards` are made of, NaN where there is none. None for other rewards."""
    names: tuple[str, ...] = ()
    """K names of the components."""
    statistics: RequestStatistics = field(default_factory=RequestStatistics)

    def base_rows(self) -> Rows:
        """Return the rows without their scores."""
        return Rows(**{item.name: getattr(self, item.name) for item in fields(Rows)})

    def without_rows(self) -> Scored:
        """Empty every mask, on a rank without rows of its own."""
        nothing = None if self.components is None else torch.full_like(self.components, float("nan"))
        statistics = replace(self.statistics, responses=0, unscored=0)
        return replace(self, mask=torch.zeros_like(self.mask), components=nothing, statistics=statistics)

    def with_components(self, names: tuple[str, ...]) -> Scored:
        """Give the components the columns `names`; a component without a score is NaN."""
        values = self.rewards.new_full((len(self), len(names)), float("nan"))
        if self.components is not None:
            values[:, [names.index(name) for name in self.names]] = self.components
        return replace(self, components=values if names else None, names=names)


def join(requests: list[Scored]) -> Scored:
    """Join the rows of several requests, which may name other components, and add up their statistics."""
    statistics = sum((each.statistics for each in requests), RequestStatistics())
    names = tuple(dict.fromkeys(name for each in requests for name in each.names))
    requests = [each.with_components(names) for each in requests]
    joined: dict[str, Any] = joined_tensors(list(requests))
    return replace(requests[0], **joined, statistics=statistics)

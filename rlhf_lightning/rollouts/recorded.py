"""From recorded responses, pairs or labels, to a `Rollout`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_lightning.distributed import raise_on_all_ranks
from rlhf_lightning.functional.masked import masked_mean
from rlhf_lightning.rollouts.collector import Collector, reference_metrics
from rlhf_lightning.rollouts.labels import encode_labels
from rlhf_lightning.rollouts.preferences import encode_pairs, pair_probability
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.types import RawRows, Rollout, Rows


@dataclass
class PolicyCollector(Collector):
    """Collects rollouts of a language model, which may also be made of recorded responses."""

    response_generator: ResponseGenerator

    @torch.no_grad()
    def recorded(
        self,
        rows: RawRows,
        max_length: int | None,
        device: torch.device,
        count: bool = True,
        policy: bool = True,
        labelled: bool = False,
    ) -> Rollout:
        """Make a rollout of recorded responses to learn from, and measure its metrics.

        The arguments are those of `pairs`; `labelled` makes a rollout of `labels`.
        """
        collect = self.labels if labelled else self.pairs
        rollout = raise_on_all_ranks(collect, rows, max_length, device, count, policy)
        lengths = rollout.mask.sum(-1).float()
        self.metrics = {"response/length": float(masked_mean(lengths, rollout.mask.any(-1), math.nan))}
        if policy:
            self.metrics |= reference_metrics(rollout)
        return rollout

    @torch.no_grad()
    def pairs(
        self, rows: RawRows, max_length: int | None, device: torch.device, count: bool = True, policy: bool = True
    ) -> Rollout:
        """Make a rollout of preference pairs, two rows each: the chosen response has reward 1, the rejected one 0.

        Args:
            rows: rows with a prompt, a chosen and a rejected response.
            max_length: longest prompt and response in tokens; None: no limit.
            device: device of the rollout.
            count: False gives every row an empty mask, on a rank without rows of its own.
            policy: False leaves the policy's log-probabilities 0, for a step that computes them itself.
        """
        encoded = encode_pairs(self.response_generator.encoder, rows, max_length).to(device)
        rewards = torch.tensor([1.0, 0.0], device=device).repeat(len(rows))
        preferences = [side for p in map(pair_probability, rows) for side in (p, 1 - p)]
        rollout = self._recorded(encoded, rewards, count, policy)
        return replace(rollout, preferences=torch.tensor(preferences, device=device))

    @torch.no_grad()
    def labels(
        self, rows: RawRows, max_length: int | None, device: torch.device, count: bool = True, policy: bool = True
    ) -> Rollout:
        """Make a rollout of labelled responses: the reward is 1 for a good and 0 for a bad one; else as `pairs`.

        A row with a mismatched response (`with_mismatched`) becomes two rows.
        """
        encoded, rewards, mismatched = encode_labels(self.response_generator.encoder, rows, max_length)
        rollout = self._recorded(encoded.to(device), rewards.to(device), count, policy)
        return replace(rollout, mismatched=mismatched.to(device))

    def _recorded(self, encoded: Rows, rewards: Tensor, count: bool, policy: bool) -> Rollout:
        encoded = encoded if count else replace(encoded, mask=torch.zeros_like(encoded.mask))
        logprobs = None if policy else torch.zeros(encoded.mask.shape, device=encoded.mask.device)
        return self._rollout(encoded, rewards, False, logprobs)

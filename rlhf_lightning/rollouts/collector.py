"""From rows of a data set to a `Rollout`: the policy writes and a reward scores, or recorded pairs are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_sum, raise_on_all_ranks
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional.advantages import group_moments
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_mean, masked_moments
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.pipeline import generate_and_score
from rlhf_lightning.rollouts.preferences import encode_pairs
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.types import RawRows, Rollout, Rows


class ReferenceLogprobs(Protocol):
    """What the collector needs of a reference."""

    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """float32 [B, T] of the response tokens."""


@dataclass
class Collector:
    """Measures what a rollout needs, in the order: write, score, policy (and critic) where needed, reference."""

    response_generator: ResponseGenerator
    reward: Reward | None
    reference: ReferenceLogprobs
    temperature: float
    overlap: int = 1
    """Parts of a rollout, each scored while the next is written."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was measured on the last rollout, over all ranks."""

    @torch.no_grad()
    def online(
        self, rows: RawRows, responses_per_prompt: int, values: bool, generator: torch.Generator, count: bool = True
    ) -> Rollout:
        """Prompts → a rollout whose responses the policy wrote; a response that cannot be scored has an empty mask.

        Without `count` all have: this rank keeps step with the others and has no rows of its own.
        """
        if self.reward is None:
            raise UserError(
                "these rows have no recorded pairs, so the policy writes, and no reward says how well: set model.reward"
            )
        started = time.perf_counter()
        reward = self.reward
        completions, scores = raise_on_all_ranks(
            lambda: generate_and_score(
                lambda part: self.response_generator.generate(part, responses_per_prompt, generator),
                rows,
                reward,
                self.overlap,
            )
        )
        generated = time.perf_counter()
        found, parts = raise_on_all_ranks(scores)
        rewards, scored = found.to(generator.device), time.perf_counter()
        counted = completions.mask & ~rewards.isnan()[:, None] & count
        kept = {item.name: getattr(completions, item.name) for item in fields(Rows)} | {"mask": counted}
        rollout = self._measured(
            Rows(**kept), rewards.nan_to_num(0.0), values, completions.logprobs, completions.values
        )
        parts = parts if count else {name: [] for name in parts}
        self.metrics = self._rollout_metrics(rollout, rewards.isnan() & count, parts)
        if responses_per_prompt > 1:
            self.metrics["reward/tied"] = _tied(rollout)
        self.metrics |= {"time/generate": generated - started, "time/score": scored - generated}
        self.metrics["throughput/tokens_per_second"] = float(all_sum(completions.mask.sum())) / (generated - started)
        return rollout

    @torch.no_grad()
    def recorded(
        self, rows: RawRows, max_length: int | None, device: torch.device, count: bool = True, policy: bool = True
    ) -> Rollout:
        """Preference pairs → a rollout to learn from; see `pairs`."""
        rollout = self.pairs(rows, max_length, device, count, policy)
        lengths = rollout.mask.sum(-1).float()
        self.metrics = {"response/length": float(masked_mean(lengths, rollout.mask.any(-1)))}
        if policy:
            kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs)
            self.metrics["kl/reference"] = float(masked_mean(kl, rollout.mask))
        return rollout

    @torch.no_grad()
    def pairs(
        self, rows: RawRows, max_length: int | None, device: torch.device, count: bool = True, policy: bool = True
    ) -> Rollout:
        """Preference pairs → 2 rows a pair: the chosen response has reward 1, the rejected one 0.

        Without `policy` its log-probabilities are left to the step that learns from the pairs, and are 0 here.
        """
        encoded = encode_pairs(self.response_generator.encoder, rows, max_length).to(device)
        encoded = encoded if count else replace(encoded, mask=torch.zeros_like(encoded.mask))
        rewards = torch.tensor([1.0, 0.0], device=device).repeat(len(rows))
        left = None if policy else torch.zeros(encoded.mask.shape, device=device)
        return self._measured(encoded, rewards, False, left)

    def _measured(
        self, rows: Rows, rewards: Tensor, values: bool, logprobs: Tensor | None, expected: Tensor | None = None
    ) -> Rollout:
        """Policy and critic read the rows where they did not say all of this while the rows were written."""
        if logprobs is None:
            output = self.response_generator.policy(rows)
            logprobs, expected = output.logprobs, output.values
        elif values and expected is None:
            expected = self.response_generator.policy.values(rows)
        reference = self.reference.logprobs(rows.tokens, rows.prompt_mask, rows.mask, self.temperature)
        kept = {item.name: getattr(rows, item.name) for item in fields(Rows)}
        return Rollout(
            **kept,
            logprobs=logprobs * rows.mask,
            reference_logprobs=reference,
            rewards=rewards,
            values=expected * rows.mask if values and expected is not None else None,
        )

    def _rollout_metrics(
        self, rollout: Rollout, unscored: Tensor, parts: dict[str, list[float | None]]
    ) -> dict[str, float]:
        valid = rollout.mask.any(-1)
        mean, variance = masked_moments(rollout.rewards, valid)
        lengths, truncated = rollout.mask.sum(-1).float(), rollout.truncated.float()
        metrics = {
            "reward/mean": mean,
            "reward/std": variance.sqrt(),
            "kl/reference": masked_mean(kl_estimate(rollout.logprobs, rollout.reference_logprobs), rollout.mask),
            "policy/entropy": -masked_mean(rollout.logprobs, rollout.mask),
            "response/length": masked_mean(lengths, valid),
            "response/truncated": masked_mean(truncated, valid),
            "reward/unscored": all_sum(unscored.sum().float()),
        }
        for name, part in parts.items():
            metrics[f"reward/{name}"] = mean_score(part, unscored.device)
        return {name: float(value) for name, value in metrics.items()}


def _tied(rollout: Rollout) -> float:
    """Share of responses, over all ranks, to prompts whose rewards are all equal: there is nothing to compare them with."""
    valid = rollout.mask.any(-1)
    deviation = group_moments(rollout.rewards, rollout.groups, valid)[1]
    return float(masked_mean((deviation == 0).float(), valid))


def mean_score(scores: Sequence[float | None], device: torch.device | str = "cpu") -> Tensor:
    """Mean over all ranks of the scores that are neither None nor NaN."""
    known = torch.tensor([float("nan") if x is None else x for x in scores], device=device)
    return masked_mean(known, ~known.isnan())

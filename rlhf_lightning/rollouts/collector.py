"""From rows of a data set to a `Rollout`, by generating and scoring responses or from recorded pairs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_sum, shared_errors
from rlhf_lightning.functional.advantages import group_moments
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_mean, masked_moments
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.pipeline import ChunkScores, split_evenly
from rlhf_lightning.rollouts.preferences import encode_pairs, pair_probability
from rlhf_lightning.rollouts.responses import ResponseGenerator
from rlhf_lightning.types import RawRows, Rollout, Rows


class ReferenceLogprobs(Protocol):
    """The interface of a reference that the collector uses."""

    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Return float32 [B, T], for the response tokens."""


@dataclass
class Collector:
    """Collects rollouts: generate, score, policy (and critic) where needed, reference."""

    response_generator: ResponseGenerator
    reward: Reward | None
    """None: every score is 0, and no metric of rewards is measured."""
    reference: ReferenceLogprobs | None
    """None: rollouts have no `reference_logprobs`."""
    temperature: float
    overlap: int = 1
    """Number of chunks of a rollout; each is scored while the next is generated."""
    nothing_scored: bool = False
    """No response of the last rollout has a score, on any rank."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last rollout, over all ranks."""
    components: dict[str, list[float | None]] = field(default_factory=dict)
    """Components of the scores of the last rollout, by name, for the rows of this rank."""

    @torch.no_grad()
    def online(
        self, rows: RawRows, responses_per_prompt: int, values: bool, generator: torch.Generator, count: bool = True
    ) -> Rollout:
        """Generate and score responses to prompts; a response that cannot be scored has an empty mask.

        Args:
            rows: rows with a prompt.
            responses_per_prompt: responses per row.
            values: measure the critic's values.
            generator: source of random numbers; its device is that of the rollout.
            count: False gives every row an empty mask, on a rank without rows of its own.

        Raises:
            UserError: generating or scoring failed on one of the ranks.
        """
        started = time.perf_counter()
        truncate = self.response_generator.generation.truncate_rollouts is True
        splits = split_evenly(rows, 1 if self.reward is None else self.overlap)
        with shared_errors(), ChunkScores(self.reward, len(splits)) as chunks:
            for split in splits:
                chunks.add(self.response_generator.generate(split, responses_per_prompt, generator, truncate=truncate))
        completions, generated = chunks.completions(), time.perf_counter()
        with shared_errors():
            host_rewards, components = chunks.scores()
        rewards, scored = host_rewards.to(generator.device), time.perf_counter()
        self.nothing_scored = _nothing_scored(rewards, count)
        counted = completions.mask & ~rewards.isnan()[:, None] & count
        tensors = {item.name: getattr(completions, item.name) for item in fields(Rows)} | {"mask": counted}
        rollout = self._rollout(
            Rows(**tensors), rewards.nan_to_num(0.0), values, completions.logprobs, completions.values
        )
        components = components if count else {name: [] for name in components}
        self.components = components
        self.metrics = self._rollout_metrics(rollout, rewards.isnan() & count, components)
        if self.reward is not None and responses_per_prompt > 1:
            self.metrics["reward/tied"] = _tied_fraction(rollout)
        self.metrics |= {"time/generate": generated - started, "time/score": scored - generated}
        self.metrics["throughput/tokens_per_second"] = float(all_sum(completions.mask.sum())) / (generated - started)
        return rollout

    @torch.no_grad()
    def recorded(
        self, rows: RawRows, max_length: int | None, device: torch.device, count: bool = True, policy: bool = True
    ) -> Rollout:
        """Make a rollout of preference pairs to learn from, and measure its metrics; the arguments are those of `pairs`."""
        rollout = self.pairs(rows, max_length, device, count, policy)
        lengths = rollout.mask.sum(-1).float()
        self.metrics = {"response/length": float(masked_mean(lengths, rollout.mask.any(-1), math.nan))}
        if policy:
            self.metrics |= _reference_metrics(rollout)
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
        encoded = encoded if count else replace(encoded, mask=torch.zeros_like(encoded.mask))
        rewards = torch.tensor([1.0, 0.0], device=device).repeat(len(rows))
        logprobs = None if policy else torch.zeros(encoded.mask.shape, device=device)
        preferences = [side for p in map(pair_probability, rows) for side in (p, 1 - p)]
        rollout = self._rollout(encoded, rewards, False, logprobs)
        return replace(rollout, preferences=torch.tensor(preferences, device=device))

    def _rollout(
        self, rows: Rows, rewards: Tensor, values: bool, logprobs: Tensor | None, critic_values: Tensor | None = None
    ) -> Rollout:
        """Add the reference, and policy and critic where the sampler recorded no log-probabilities or values."""
        if logprobs is None:
            output = self.response_generator.policy(rows)
            logprobs, critic_values = output.logprobs, output.values
        elif values and critic_values is None:
            critic_values = self.response_generator.policy.values(rows)
        reference = None
        if self.reference is not None:
            reference = self.reference.logprobs(rows.tokens, rows.prompt_mask, rows.mask, self.temperature)
        tensors = {item.name: getattr(rows, item.name) for item in fields(Rows)}
        return Rollout(
            **tensors,
            logprobs=logprobs * rows.mask,
            reference_logprobs=reference,
            rewards=rewards,
            values=critic_values * rows.mask if values and critic_values is not None else None,
        )

    def _rollout_metrics(
        self, rollout: Rollout, unscored: Tensor, components: dict[str, list[float | None]]
    ) -> dict[str, float]:
        valid = rollout.mask.any(-1)
        lengths, truncated = rollout.mask.sum(-1).float(), rollout.truncated.float()
        metrics: dict[str, Tensor | float] = {}
        if self.reward is not None:
            mean, variance = masked_moments(rollout.rewards, valid, math.nan)
            metrics = {"reward/mean": mean, "reward/std": variance.sqrt()}
        metrics |= _reference_metrics(rollout)
        metrics |= {
            "policy/entropy": -masked_mean(rollout.logprobs, rollout.mask, math.nan),
            "response/length": masked_mean(lengths, valid, math.nan),
            "response/truncated": masked_mean(truncated, valid, math.nan),
        }
        if self.reward is not None:
            metrics["reward/unscored"] = all_sum(unscored.sum().float())
        for name, scores in components.items():
            metrics[f"reward/{name}"] = mean_score(scores, unscored.device)
        return {name: float(value) for name, value in metrics.items()}


def _reference_metrics(rollout: Rollout) -> dict[str, float]:
    """Return the KL divergence from the reference, over all ranks; nothing without a reference."""
    if rollout.reference_logprobs is None:
        return {}
    kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs)
    return {"kl/reference": float(masked_mean(kl, rollout.mask, math.nan))}


def _nothing_scored(rewards: Tensor, count: bool) -> bool:
    """Tell whether there are responses on any rank, and each of them is without a score."""
    numbers = torch.tensor([int((~rewards.isnan() & count).sum()), len(rewards) * count], device=rewards.device)
    scored, responses = all_sum(numbers).tolist()
    return bool(responses and not scored)


def _tied_fraction(rollout: Rollout) -> float:
    """Return the fraction of responses, over all ranks, to prompts whose rewards are all equal."""
    valid = rollout.mask.any(-1)
    deviation = group_moments(rollout.rewards, rollout.groups, valid)[1]
    return float(masked_mean((deviation == 0).float(), valid, math.nan))


def mean_score(scores: Sequence[float | None], device: torch.device | str = "cpu") -> Tensor:
    """Return the mean over all ranks of the scores that are neither None nor NaN; NaN where there are none."""
    values = torch.tensor([float("nan") if x is None else x for x in scores], device=device)
    return masked_mean(values, ~values.isnan(), math.nan)

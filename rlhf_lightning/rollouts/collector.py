"""From rows of a data set to a `Rollout`, by generating and scoring responses."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf_lightning.distributed import all_gather, all_sum, shared_errors
from rlhf_lightning.functional.advantages import group_moments
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masked import masked_mean, masked_moments
from rlhf_lightning.rewards.base import Reward
from rlhf_lightning.rollouts.pipeline import ChunkScores, scores_of, split_evenly
from rlhf_lightning.rollouts.preferences import encode_pairs as encode_pairs  # also imported from here by others
from rlhf_lightning.rollouts.scored import RequestStatistics, Scored
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.types import Completions, PolicyOutput, RawRows, Rollout, Rows


class Actor(Protocol):
    """The interface of a network that chooses tokens, or other actions, and learns; it is an `nn.Module`."""

    def __call__(self, rows: Rows, entropy: bool = False) -> PolicyOutput:
        """Return log-probabilities of existing responses, the entropy if requested, and values with a critic."""

    def values(self, rows: Rows) -> Tensor:
        """Return the critic's values, float32 [B, T]."""

    def final_values(self, rows: Rows) -> Tensor:
        """Return the critic's value after the last token of truncated rows, float32 [B], 0 for others; called where the algorithm
        `bootstraps`.
        """

    def probe_capabilities(self) -> None:
        """Find out what the network can do, before its weights may be sharded."""

    def backbones(self) -> list[Any]:
        """Return the language models whose packing decides how a step is split; none where it reads no text."""


class ResponseSource(Protocol):
    """The interface of whatever generates rollouts with an actor."""

    @property
    def policy(self) -> Actor:
        """The actor, with its present weights."""

    def generate(
        self, rows: RawRows, responses_per_prompt: int, randomness: Randomness, temperature: float | None = None
    ) -> Completions:
        """Generate `responses_per_prompt` adjacent responses to each row; a temperature of 0 is greedy."""


class ReferenceLogprobs(Protocol):
    """The interface of a reference that the collector uses."""

    def logprobs(self, tokens: Tensor, prompt_mask: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """Return float32 [B, T], for the response tokens."""


@dataclass
class Collector:
    """Collects rollouts: generate, score, policy (and critic) where needed, reference."""

    response_generator: ResponseSource
    reward: Reward | None
    """None: every score is 0, and no metric of rewards is measured."""
    reference: ReferenceLogprobs | None
    """None: rollouts have no `reference_logprobs`."""
    temperature: float
    overlap: int = 1
    """Number of chunks of a rollout; each is scored while the next is generated."""
    separate_engine: bool = False
    """The generator's log-probabilities are not those of the actor, and both are kept."""
    nothing_scored: bool = False
    """No response of the last rollout has a score, on any rank."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last rollout, over all ranks."""
    component_names: tuple[str, ...] = ()
    """Names of the K columns of `components` in the last rollout."""

    @torch.no_grad()
    def request(
        self,
        rows: RawRows,
        responses_per_prompt: int,
        randomness: Randomness,
        count: bool = True,
        greedy_baseline: bool = False,
    ) -> Scored:
        """Generate and score responses: the half of a rollout that needs no training model besides the generator's own weights.

        It talks to no other rank; `measure` is the other half.

        Args:
            rows: rows with a prompt.
            responses_per_prompt: responses per row.
            randomness: random numbers of the rows.
            count: False gives every row an empty mask, on a rank without rows of its own.
            greedy_baseline: also score a greedy response to each prompt; a prompt whose greedy response has no score is unscored.

        Raises:
            UserError: generating or scoring failed.
        """
        started, generate = time.perf_counter(), self.response_generator.generate
        splits = split_evenly(rows, randomness, 1 if self.reward is None else self.overlap)
        with ChunkScores(self.reward, len(splits)) as chunks:
            for chunk, numbers in splits:
                chunks.add(generate(chunk, responses_per_prompt, numbers))
        completions, generated = chunks.completions(), time.perf_counter()
        device = completions.tokens.device
        scores = chunks.scores()
        rewards, components = scores.rewards, scores.components
        baselines = None
        if greedy_baseline:
            greedy = scores_of(self.reward, generate(rows, 1, randomness, 0.0)).rewards
            baselines = greedy.repeat_interleave(responses_per_prompt)
            rewards = rewards.masked_fill(baselines.isnan(), math.nan)
            baselines = baselines.nan_to_num(0.0).to(device)
        rewards = rewards.to(device)
        table = [[math.nan if x is None else x for x in column] for column in components.values()]
        scored = Scored(
            **{item.name: getattr(completions, item.name) for item in fields(Rows)}
            | {"mask": completions.mask & ~rewards.isnan()[:, None]},
            step_rewards=None if scores.step_rewards is None else scores.step_rewards.nan_to_num(0.0).to(device),
            rewards=rewards.nan_to_num(0.0),
            has_scores=self.reward is not None or completions.rewards is not None,
            logprobs=completions.logprobs,
            values=completions.values,
            baselines=baselines,
            components=torch.tensor(table, device=device).T if table else None,
            names=tuple(components),
            statistics=RequestStatistics(
                generated - started,
                time.perf_counter() - generated,
                len(completions),
                int(completions.mask.sum()),
                int(rewards.isnan().sum()),
            ),
        )
        return scored if count else scored.without_rows()

    @torch.no_grad()
    def measure(self, scored: Scored, values: bool, bootstraps: bool = False) -> Rollout:
        """Measure scored responses with the training model and the reference: the half of a rollout after `request`.

        Args:
            scored: responses of this rank; every rank must call this method.
            values: measure the critic's values.
            bootstraps: measure also its values after truncated responses.
        """
        names = tuple(dict.fromkeys(name for names in all_gather(scored.names) for name in names))
        scored = scored.with_components(names)
        rows = scored.base_rows()
        recorded = (None, None) if self.separate_engine else (scored.logprobs, scored.values)
        rollout = self._rollout(rows, scored.rewards, values, *recorded)
        steps = None if scored.step_rewards is None else scored.step_rewards.where(rollout.mask, 0.0)
        rollout = replace(
            rollout, step_rewards=steps, baselines=scored.baselines, components=scored.components,
            component_weights=self._component_weights(scored),
            final_values=self.response_generator.policy.final_values(rows) if bootstraps else None,
        )  # fmt: skip
        if self.separate_engine and scored.logprobs is not None:
            rollout = replace(rollout, generator_logprobs=scored.logprobs * rows.mask)
        self.component_names = names
        self.metrics = self._rollout_metrics(rollout, scored)
        return rollout

    def online(
        self,
        rows: RawRows,
        responses_per_prompt: int,
        values: bool,
        randomness: Randomness,
        count: bool = True,
        greedy_baseline: bool = False,
        bootstraps: bool = False,
    ) -> Rollout:
        """Generate, score and measure responses to prompts; the arguments are those of `request` and `measure`.

        Raises:
            UserError: generating or scoring failed on one of the ranks.
        """
        with shared_errors():
            scored = self.request(rows, responses_per_prompt, randomness, count, greedy_baseline)
        return self.measure(scored, values, bootstraps)

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

    def _component_weights(self, scored: Scored) -> Tensor | None:
        """Return the weights of the components for every row, float32 [B, K]; None for a reward that is no weighted sum."""
        weights = None if self.reward is None else self.reward.component_weights
        if weights is None or scored.components is None:
            return None
        row = scored.components.new_tensor([weights.get(name, 0.0) for name in scored.names])
        return row.expand_as(scored.components).contiguous()

    def _rollout_metrics(self, rollout: Rollout, scored: Scored) -> dict[str, float]:
        valid, spent = rollout.mask.any(-1), scored.statistics
        lengths, truncated = rollout.mask.sum(-1).float(), rollout.truncated.float()
        metrics: dict[str, Tensor | float] = {}
        if scored.has_scores:
            mean, variance = masked_moments(rollout.rewards, valid, math.nan)
            metrics = {"reward/mean": mean, "reward/std": variance.sqrt()}
        metrics |= reference_metrics(rollout)
        metrics |= {
            "policy/entropy": -masked_mean(rollout.logprobs, rollout.mask, math.nan),
            "response/length": masked_mean(lengths, valid, math.nan),
            "response/truncated": masked_mean(truncated, valid, math.nan),
        }
        unscored, responses = all_sum(torch.tensor([spent.unscored, spent.responses])).tolist()
        self.nothing_scored = bool(responses) and unscored == responses
        if scored.has_scores:
            metrics["reward/unscored"] = unscored
        if scored.has_scores and len(rollout) > len(rollout.groups.unique()):
            metrics["reward/tied"] = _tied_fraction(rollout)
        for name, values in zip(scored.names, () if scored.components is None else scored.components.T, strict=True):
            metrics[f"reward/{name}"] = masked_mean(values, ~values.isnan(), math.nan)
        metrics |= {"time/generate": spent.generate_seconds, "time/score": spent.score_seconds}
        generated = float(all_sum(torch.tensor(spent.tokens)))
        metrics["throughput/tokens_per_second"] = generated / spent.generate_seconds
        return {name: float(value) for name, value in metrics.items()}


def reference_metrics(rollout: Rollout) -> dict[str, float]:
    """Return the KL divergence from the reference, over all ranks; nothing without a reference."""
    if rollout.reference_logprobs is None:
        return {}
    kl = kl_estimate(rollout.logprobs, rollout.reference_logprobs)
    return {"kl/reference": float(masked_mean(kl, rollout.mask, math.nan))}


def _tied_fraction(rollout: Rollout) -> float:
    """Return the fraction of responses, over all ranks, to prompts whose rewards are all equal."""
    valid = rollout.mask.any(-1)
    deviation = group_moments(rollout.rewards, rollout.groups, valid)[1]
    return float(masked_mean((deviation == 0).float(), valid, math.nan))


def mean_score(scores: Sequence[float | None], device: torch.device | str = "cpu") -> Tensor:
    """Return the mean over all ranks of the scores that are neither None nor NaN; NaN where there are none."""
    values = torch.tensor([float("nan") if x is None else x for x in scores], device=device)
    return masked_mean(values, ~values.isnan(), math.nan)

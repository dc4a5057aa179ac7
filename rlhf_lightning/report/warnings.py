"""What in the numbers of a run should worry its owner, in plain words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rlhf_lightning.report.runs import RunFiles
from rlhf_lightning.report.samples import paired

ERRORS = 2.0
"""Standard errors by which a judge must fall."""
FEWEST = 8
"""Responses from which a statement is made."""


@dataclass(frozen=True)
class Warned:
    """Hold one warning."""

    run: str
    kind: str
    text: str


def warnings_of(runs: Sequence[RunFiles]) -> list[Warned]:
    """Return the warnings about every run, in the order of `CHECKS`."""
    return [Warned(run.name, kind, text) for kind, check in CHECKS.items() for run in runs for text in check(run)]


def judge_fell(run: RunFiles) -> Iterator[str]:
    """The training reward rose while another reward fell from its best by more than `ERRORS` standard errors."""
    steps = run.sample_steps
    if len(steps) < 2:
        return
    at = {step: run.samples_at(step) for step in steps}
    names = [name for name in at[steps[0]][0] if name.startswith("reward/")]
    for name in names:
        columns = {step: [_known(row.get(name)) for row in rows] for step, rows in at.items()}
        means = {step: _mean(column) for step, column in columns.items()}
        best = max(means, key=lambda step: means[step])
        pairs = zip(columns[best], columns[steps[-1]], strict=False)
        drops = [a - b for a, b in pairs if a == a and b == b]
        gain = _mean([_known(row.get("reward")) for row in at[steps[-1]]]) - _mean(
            [_known(row.get("reward")) for row in at[best]]
        )
        if len(drops) >= FEWEST and gain > 0 and fmean(drops) > ERRORS * stdev(drops) / math.sqrt(len(drops)):
            yield (
                f"The training reward rose by {gain:.3g} after step {best}, while {name} fell from {means[best]:.3g} to "
                f"{means[steps[-1]]:.3g}. The model may exploit the training reward. The model of step {best} was better by "
                f"{name}; OverOptimization and KeepBest keep such a model."
            )


def length_explains_gain(run: RunFiles) -> Iterator[str]:
    """Half of the gain in reward or more follows from the change in length, by regression over the responses."""
    pairs = [(a, b) for a, b in paired(run) if _known(a.get("reward")) == _known(a.get("reward"))]
    gains = [_known(b.get("reward")) - _known(a.get("reward")) for a, b in pairs]
    longer = [float(len(str(b.get("response"))) - len(str(a.get("response")))) for a, b in pairs]
    known = [(gain, more) for gain, more in zip(gains, longer, strict=True) if gain == gain]
    if len(known) < FEWEST:
        return
    gain, more = fmean(gain for gain, _ in known), fmean(more for _, more in known)
    spread = sum((m - more) ** 2 for _, m in known)
    if gain <= 0 or not spread:
        return
    covariance = sum((g - gain) * (m - more) for g, m in known)
    explained = covariance / spread * more / gain
    variance = sum((g - gain) ** 2 for g, _ in known)
    if explained >= 0.5 and variance and abs(covariance) / math.sqrt(spread * variance) >= 0.3:
        change = "longer" if more > 0 else "shorter"
        yield (
            f"Replies became {abs(more):.0f} characters {change} on average, which explains {min(explained, 1):.0%} of the gain "
            "in reward. Compare at equal length (WinRate, length_controlled) before you believe the gain."
        )


def kl_beyond_target(run: RunFiles) -> Iterator[str]:
    """The KL to the reference is half as large again as its target, or more."""
    target = _known_text(next((v for k, v in run.config.items() if k.endswith("kl.target")), None))
    last = run.last("kl/reference")
    if target and last is not None and last > 1.5 * target:
        yield (
            f"The KL to the reference ended at {last:.3g} nats per token, beyond its target of {target:g}. Increase kl.coef or "
            "kl.gain, or reduce the learning rate."
        )


def entropy_collapse(run: RunFiles) -> Iterator[str]:
    """The entropy of the policy has fallen to a fifth of its start."""
    first, last = run.first("policy/entropy"), run.last("policy/entropy")
    if first is not None and last is not None and first > 0 and last < 0.2 * first:
        yield (
            f"The entropy of the policy fell from {first:.3g} to {last:.3g} nats per token: it generates almost the same reply "
            "every time and explores little. Increase entropy_coef or kl.coef, or reduce the learning rate."
        )


def no_signal(run: RunFiles) -> Iterator[str]:
    """In most groups all responses have one score."""
    tied = run.last("reward/tied", 0.25)
    if tied is not None and tied > 0.5:
        yield (
            f"In {tied:.0%} of the groups of the last quarter all responses got the same score, so they taught nothing. Use "
            "harder or easier prompts, more responses per prompt, or a finer reward."
        )


def reference_gap(run: RunFiles) -> Iterator[str]:
    """The quantised reference differs from the policy before the first step."""
    gap = run.first("reference/gap")
    target = _known_text(next((v for k, v in run.config.items() if k.endswith("kl.target")), None))
    if gap is not None and gap > (target / 10 if target else 0.01):
        yield (
            f"Before the first step policy and reference differ by {gap:.2g} nats per token, because the reference is quantised. "
            "The KL contains this gap. Set model.reference to full, or to int8."
        )


def held_out_overlap(run: RunFiles) -> Iterator[str]:
    """Prompts of training rollouts, as far as SampleTable shows them, are held-out prompts too."""
    held_out = {row.get("prompt") for row in run.samples}
    trained = {row.get("prompt") for row in run.tables.get("rollouts", ())}
    shared = held_out & trained - {None}
    if shared:
        yield (
            f"{len(shared)} of {len(trained)} training prompts in the table of rollouts are held-out prompts as well, such as "
            f"{str(min(shared, key=str))[:80]!r}. Held-out numbers of this run say too much."
        )


def truncated(run: RunFiles) -> Iterator[str]:
    """Most responses end without a stop token."""
    share = run.last("response/truncated")
    if share is not None and share > 0.3:
        yield (
            f"{share:.0%} of the last responses ended without a stop token. Increase generation.max_new_tokens, or penalise "
            "truncated responses."
        )


CHECKS: dict[str, Callable[[RunFiles], Iterator[str]]] = {
    "over-optimisation": judge_fell,
    "length": length_explains_gain,
    "KL": kl_beyond_target,
    "entropy": entropy_collapse,
    "no signal": no_signal,
    "reference gap": reference_gap,
    "held-out overlap": held_out_overlap,
    "truncated responses": truncated,
}


def _known(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _known_text(value: str | None) -> float | None:
    try:
        return float(value or "")
    except ValueError:
        return None


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return fmean(known) if known else -math.inf

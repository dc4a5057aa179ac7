"""Metrics that the losses of several algorithms report."""

from __future__ import annotations

from torch import Tensor

from rlhf_lightning.algorithms.base import PolicyGradient
from rlhf_lightning.functional.masked import masked_sum
from rlhf_lightning.types import Batch, LossOutput, PolicyOutput


def token_means(values: dict[str, Tensor], mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the sum of each metric over the tokens under `mask` with their number, for `LossOutput.means`.

    Args:
        values: metric name to float32 [B, T].
        mask: bool [B, T].
    """
    return {name: (masked_sum(value, mask), mask.sum()) for name, value in values.items()}


def update_metrics(
    log_ratio: Tensor, mask: Tensor, low: float, high: float | None, ratio: Tensor | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Measure how far an update moved the policy.

    Args:
        log_ratio: float32 [B, T]; log π_now - log π_rollout, 0 off the mask.
        mask: bool [B, T].
        low: clip range below 1.
        high: clip range above 1; None: the same as `low`.
        ratio: float32 [B, T]; the ratio that is clipped, 1 off the mask. None: e^log_ratio.

    Returns:
        The means `kl/update` and `policy/clip_fraction`, and the maximum `policy/ratio_max`.
    """
    ratio = log_ratio.detach().exp() if ratio is None else ratio.detach()
    clipped = ((ratio < 1 - low) | (ratio > 1 + (low if high is None else high))).float()
    values = {"kl/update": -log_ratio.detach(), "policy/clip_fraction": clipped}
    return token_means(values, mask), {"policy/ratio_max": ratio.max()}


def policy_output(
    algorithm: PolicyGradient,
    policy: Tensor,
    output: PolicyOutput,
    batch: Batch,
    token_weight: Tensor | None = None,
    ratio: Tensor | None = None,
    clip: tuple[float, float | None] | None = None,
) -> LossOutput:
    """Sum the loss of a policy and its KL penalty over the tokens under the mask, and measure the update.

    Args:
        algorithm: has the penalty, and the weight by which the sum is divided.
        policy: float32 [B, T]; the loss of each token.
        output: of the policy.
        batch: the rows.
        token_weight: of each token, of a shape that broadcasts to [B, T]; None: 1.
        ratio: float32 [B, T]; the ratio to the policy that generated, 1 off the mask.
        clip: its clip ranges below and above 1. None: nothing is clipped, and no ratio is measured.
    """
    mask, weigh = batch.mask, 1.0 if token_weight is None else token_weight
    log_ratio = (output.logprobs - batch.logprobs).detach().masked_fill(~mask, 0)
    means, maxima = (
        update_metrics(log_ratio, mask, *clip, ratio) if clip else (token_means({"kl/update": -log_ratio}, mask), {})
    )
    means["loss/policy"] = (masked_sum(policy.detach() * weigh, mask), algorithm.weight(batch))
    penalty = algorithm.kl.in_loss(output.logprobs, batch)
    return LossOutput(masked_sum((policy + penalty) * weigh, mask), means, maxima)

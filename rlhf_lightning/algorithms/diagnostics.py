"""Metrics that the losses of several algorithms report."""

from __future__ import annotations

from torch import Tensor

from rlhf_lightning.functional.masked import masked_sum


def token_means(values: dict[str, Tensor], mask: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the sum of each metric over the tokens under `mask` with their number, for `LossOutput.means`.

    Args:
        values: metric name to float32 [B, T].
        mask: bool [B, T].
    """
    return {name: (masked_sum(value, mask), mask.sum()) for name, value in values.items()}


def update_metrics(
    log_ratio: Tensor, mask: Tensor, low: float, high: float | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Measure how far an update moved the policy.

    Args:
        log_ratio: float32 [B, T]; log π_now - log π_rollout, 0 off the mask.
        mask: bool [B, T].
        low: clip range below 1.
        high: clip range above 1; None: the same as `low`.

    Returns:
        The means `kl/update` and `policy/clip_fraction`, and the maximum `policy/ratio_max`.
    """
    ratio = log_ratio.detach().exp()
    clipped = ((ratio < 1 - low) | (ratio > 1 + (low if high is None else high))).float()
    values = {"kl/update": -log_ratio.detach(), "policy/clip_fraction": clipped}
    return token_means(values, mask), {"policy/ratio_max": ratio.max()}

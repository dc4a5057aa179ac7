"""The contract that every algorithm keeps, and the KL penalty that the online ones share."""

from __future__ import annotations

from torch import Tensor


def update_metrics(log_ratio: Tensor, low: float, high: float | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`kl/update` and `policy/clip_fraction` of each token, and the maximum `policy/ratio_max`; `log_ratio` is 0 off the mask."""
    ratio = log_ratio.detach().exp()
    clipped = ((ratio < 1 - low) | (ratio > 1 + (low if high is None else high))).float()
    return {"kl/update": -log_ratio.detach(), "policy/clip_fraction": clipped}, {"policy/ratio_max": ratio.max()}

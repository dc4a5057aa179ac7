"""Estimate KL(policy ‖ reference) from the policy's own samples; no other module estimates KL.

Source: Schulman, "Approximating KL divergence", 2020. Let d = log π(a) - log ref(a) for a sample a of π. The values of
k1 = d and k3 = exp(-d) - 1 + d are unbiased; that of k2 = d²/2 is biased. The gradients differ. The expected gradient of k1
is zero. On-policy, the gradient of k2 is that of the reverse KL. The gradient of k3 is that of the reverse KL only if k3
is weighted by the ratio of the current policy to the policy that generated the sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """Estimate the KL per token, in nats; the shape is that of the log-probabilities.

    >>> kl_estimate(torch.tensor(-1.0), torch.tensor(-1.5), "k2")
    tensor(0.1250)
    """
    difference = logprobs - reference_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    return torch.expm1(-difference) + difference


def ratio_weighted(kl: Tensor, logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Multiply `kl` by π/π_old; as a loss, k3 then has the gradient of the reverse KL, also off-policy.

    In the first gradient step the ratio is 1 and its gradient is the score function, which corrects k1 and k3.
    """
    return torch.exp(logprobs - old_logprobs) * kl

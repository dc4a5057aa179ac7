"""Estimators of KL(policy ‖ reference) from the policy's own samples: the one place where KL is estimated.

Source: Schulman, "Approximating KL divergence", 2020. With d = log π(a) - log ref(a) for a drawn from π:
k1 = d and k3 = exp(-d) - 1 + d are unbiased in value, k2 = d²/2 is not. As a loss it is the other way round: the expected
gradient of k1 is zero, that of k2 is the gradient of the reverse KL on-policy, that of k3 is not unless it is weighted by
the ratio of the policy now to the one that drew the sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """One estimate a token, in nats; same shape as the log-probabilities.

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
    """`kl` times π/π_old: as a loss, k3 then has the gradient of the reverse KL, off-policy too.

    With a single gradient step the ratio is 1 and its gradient is the score function, which is what makes k1 and k3 right.
    """
    return torch.exp(logprobs - old_logprobs) * kl
